"""10,000 tampered audit logs, each found: edits, deletions, swaps, insertions, truncations, and chains computed anew.

Every tampering touches an entry at or before the last signed head. Most run on rows in memory through the check that
the service runs; some hundreds on a SQLite file and some dozens on PostgreSQL, whose guards were taken away first.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from audit_logs import DIGEST_KEY, SIGNING, Row, entry, read_rows, recompute, renumber, rewrite, take_guards, witness
from sqlalchemy import Engine

from models.audit import ChainFaultKind, ChainHead, ChainReport, SignedHead
from policies.audit.chain import GENESIS, link, link_digest, prepare, sha256_hex
from policies.audit.check import ChainCheck
from policies.audit.checkpoint import open_checkpoint
from policies.audit.engine import make_engine
from policies.audit.migrate import migrate
from policies.audit.verify import verify_log

TAMPERINGS = 10_000
ENTRIES = 24
SEALED = (5, 12, 20)
"""The heads; four entries are not sealed."""

LAST = SEALED[-1]
SEALED_AT = "2026-03-02T09:16:00.000000Z"


@dataclass(frozen=True)
class Tampered:
    """A log that somebody changed, and between which entries the first that does not fit must be named."""

    kind: str
    rows: list[Row]
    head: ChainHead
    first: int
    last: int


def sound_log() -> list[Row]:
    rows: list[Row] = []
    for number in range(1, ENTRIES + 1):
        fields: dict[str, Any] = {"model_id": "m", "domain": "d" if number % 2 else None, "compliance_score": 0.5}
        made = prepare(entry(f"e{number}", violations=["harm"], timestamp=number, **fields), DIGEST_KEY)
        previous = rows[-1]["digest"] if rows else GENESIS
        rows.append(link(made, number, f"2026-03-02T09:{number:02d}:00.000000Z", previous))
    return rows


def heads_of(rows: Sequence[Row]) -> list[SignedHead]:
    heads: list[SignedHead] = []
    for seq in SEALED:
        head = ChainHead(seq=seq, digest=rows[seq - 1]["digest"])
        heads.append(SIGNING.seal(head, SEALED_AT, heads[-1] if heads else None))
    return heads


ROWS = sound_log()
HEADS = heads_of(ROWS)
HEAD = ChainHead(seq=ENTRIES, digest=ROWS[-1]["digest"])


def range_around(seq: int) -> tuple[int, int]:
    """The entries after the sealed one before this place, up to the sealed one at or after it."""
    return max([0, *(sealed for sealed in SEALED if sealed < seq)]) + 1, min(s for s in SEALED if s >= seq)


def other(rng: random.Random, column: str, value: object) -> object:
    """Another value of the column's kind."""
    if isinstance(value, int):
        return value + rng.choice([-1, 1, 7])
    if value is None:
        return rng.choice(["x", ""])
    text = str(value)
    if column in {"model_id", "cycle_id", "domain"} and rng.random() < 0.3:
        return None
    if column in {"content_digest", "previous", "digest"} or rng.random() < 0.5:
        place = rng.randrange(len(text))
        return text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :]
    return rng.choice([text + " ", text[:-1], text.upper() if text.upper() != text else text.lower()])


def head_after(rows: Sequence[Row]) -> ChainHead:
    """The head as somebody would set it who wants it to fit."""
    return ChainHead(seq=len(rows), digest=rows[-1]["digest"] if rows else GENESIS)


def edit(rng: random.Random) -> Tampered:
    """One field of one entry."""
    place, column = rng.randint(1, LAST), rng.choice(list(ROWS[0]))
    row = ROWS[place - 1]
    rows = [*ROWS[: place - 1], {**row, column: other(rng, column, row[column])}, *ROWS[place:]]
    # An edited number moves the entry among the others.
    rows.sort(key=lambda row: row["seq"])
    first = (
        min(place, *(rows[i]["seq"] for i in range(len(rows)) if rows[i]["seq"] != i + 1)) if column == "seq" else place
    )
    return Tampered(f"edit {column}", rows, HEAD, min(first, place), place + 1)


def redigested_edit(rng: random.Random) -> Tampered:
    """A body and what follows from it in its own entry, the chain after it left."""
    place = rng.randint(1, LAST)
    row = {**ROWS[place - 1], "body": ROWS[place - 1]["body"].replace("harm", "none")}
    row["content_digest"] = sha256_hex(row["body"])
    row["digest"] = link_digest(row)
    return Tampered("edit with digests", [*ROWS[: place - 1], row, *ROWS[place:]], HEAD, place, place + 1)


def deletion(rng: random.Random) -> Tampered:
    """One entry, the others renumbered or not, the head lowered or not."""
    place = rng.randint(1, LAST)
    rows = [*ROWS[: place - 1], *ROWS[place:]]
    if rng.random() < 0.5:
        rows = renumber(rows)
    return Tampered("deletion", rows, rng.choice([HEAD, head_after(rows)]), place, place)


def swap(rng: random.Random) -> Tampered:
    """Two entries change places."""
    one, two = sorted(rng.sample(range(1, ENTRIES + 1), 2))
    if one > LAST:
        return swap(rng)
    rows = list(ROWS)
    rows[one - 1], rows[two - 1] = {**ROWS[two - 1], "seq": one}, {**ROWS[one - 1], "seq": two}
    return Tampered("swap", rows, HEAD, one, one)


def truncation(rng: random.Random) -> Tampered:
    """The end of the log, with what was sealed of it; the head lowered or not."""
    keep = rng.randint(0, LAST - 1)
    rows = list(ROWS[:keep])
    return Tampered("truncation", rows, rng.choice([HEAD, head_after(rows)]), keep + 1, keep + 1)


def insertion(rng: random.Random) -> Tampered:
    """An entry once more, or one of the intruder's own, with a number of its own or another's."""
    place = rng.randint(1, LAST)
    row = dict(rng.choice(ROWS))
    if rng.random() < 0.5:
        row = {**row, "entry_id": "forged", "previous": ROWS[place - 2]["digest"] if place > 1 else GENESIS}
        row["digest"] = link_digest(row)
    rows = [*ROWS[: place - 1], {**row, "seq": place}, *ROWS[place - 1 :]]
    if rng.random() < 0.5:
        rows = renumber(rows)
    return Tampered("insertion", rows, rng.choice([HEAD, head_after(rows)]), place, place + 1)


def recomputation(rng: random.Random) -> Tampered:
    """A change anywhere in what is sealed, and every digest after it computed anew, the head's too."""
    place = rng.randint(1, LAST)
    changed, last = list(ROWS), ENTRIES
    how = rng.choice(["edit", "deletion", "insertion", "swap", "cut"])
    if how == "deletion":
        del changed[place - 1]
    elif how == "insertion":
        changed.insert(place - 1, {**ROWS[0], "entry_id": "forged"})
    elif how == "swap" and place < LAST:
        changed[place - 1], changed[place] = changed[place], changed[place - 1]
    else:
        body = ROWS[place - 1]["body"].replace("harm", "none")
        changed[place - 1] = {**ROWS[place - 1], "body": body, "content_digest": sha256_hex(body)}
        last = LAST if how == "cut" else ENTRIES
    rows = renumber(recompute(changed, place - 1)[:last])
    return Tampered(f"recomputation after {how}", rows, head_after(rows), *range_around(place))


KINDS: tuple[Callable[[random.Random], Tampered], ...] = (
    edit,
    redigested_edit,
    deletion,
    swap,
    truncation,
    insertion,
    recomputation,
)


def check(rows: Sequence[Row], head: ChainHead, heads: Sequence[SignedHead] | None) -> ChainReport:
    walked = ChainCheck(heads=heads)
    walked.walk(rows)
    if walked.misplaced:
        walked.settle_misplaced(successor_exists=any(row["previous"] == walked.expected_previous for row in rows))
    return walked.finish(head)


def assert_found(report: ChainReport, tampered: Tampered) -> None:
    assert report.fault is not None, f"{tampered} was not found"
    assert not report.ok
    through = report.fault.through or report.fault.seq
    where = f"{tampered.kind}: {report.fault} is not where it was"
    assert report.fault.seq <= tampered.last, where
    assert tampered.first <= through, where


def test_every_one_of_10_000_is_found() -> None:
    rng = random.Random(20260302)
    found: Counter[str] = Counter()
    kinds: Counter[ChainFaultKind] = Counter()
    for number in range(TAMPERINGS):
        tampered = KINDS[number % len(KINDS)](rng)
        report = check(tampered.rows, tampered.head, HEADS)
        assert_found(report, tampered)
        assert report.fault is not None
        found[tampered.kind] += 1
        kinds[report.fault.kind] += 1
    assert found.total() == TAMPERINGS
    assert len(found) == len(ROWS[0]) + 5 + 5, found
    assert set(kinds) == set(ChainFaultKind) - {ChainFaultKind.ANCHOR, ChainFaultKind.HEAD, ChainFaultKind.BEYOND_HEAD}


def test_without_signed_heads_a_recomputed_chain_is_not_found() -> None:
    """So it is they that find it; everything else the chain shows by itself, and a cut where the head was left."""
    rng = random.Random(1)
    for _ in range(200):
        tampered = recomputation(rng)
        assert check(tampered.rows, tampered.head, None).ok
        assert not check(tampered.rows, tampered.head, HEADS).ok
    cut = ROWS[:10]
    assert check(cut, head_after(cut), None).ok
    assert not check(cut, head_after(cut), HEADS).ok


def test_the_log_itself_fits_and_its_unsealed_tail_is_named() -> None:
    """Else the tests above would prove nothing."""
    report = check(ROWS, HEAD, HEADS)
    assert (report.ok, report.entries, report.sealed_through, report.unsealed) == (True, ENTRIES, LAST, ENTRIES - LAST)
    rows = renumber(recompute([*ROWS[:LAST], {**ROWS[LAST], "model_id": "x"}, *ROWS[LAST + 1 :]], LAST))
    assert check(rows, head_after(rows), HEADS).ok, "what no head covers can be computed anew; the report says how much"


@pytest.mark.parametrize("backend", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_in_a_database_whose_guards_were_taken_away(
    backend: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/audit.db" if backend == "sqlite" else request.getfixturevalue("postgres_url")
    migrate(url)
    engine = make_engine(url)
    path = tmp_path / "heads.jsonl"
    with open_checkpoint(path) as file:
        for head in HEADS:
            file.append(head)
    take_guards(engine)
    rewrite(engine, ROWS, (HEAD.seq, HEAD.digest))
    assert verify_log(engine, witness(path)).ok
    rng = random.Random(7)
    for number in range(700 if backend == "sqlite" else 70):
        tampered = KINDS[number % len(KINDS)](rng)
        rewrite(engine, tampered.rows, (tampered.head.seq, tampered.head.digest))
        assert_found(verify_log(engine, witness(path)), tampered)
    check_odd_values(engine, path)
    engine.dispose()


def check_odd_values(engine: Engine, path: Path) -> None:
    """What a SQLite column takes of another kind than the log writes is found, not stumbled over."""
    if engine.dialect.name != "sqlite":
        return
    for column, value in (
        ("seq", "three"),
        ("body", b"{}"),
        ("body", "\u00e9"),
        ("digest", 7),
        ("violation_count", 1.5),
    ):
        rows = [*ROWS[:2], {**ROWS[2], column: value}, *ROWS[3:]]
        with engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM audit_entries")
            for row in rows:
                marks = ", ".join("?" * len(row))
                connection.exec_driver_sql(f"INSERT INTO audit_entries VALUES ({marks})", tuple(row.values()))  # noqa: S608
        report = verify_log(engine, witness(path))
        assert report.fault is not None, (column, value)
        assert report.fault.seq == 3, (column, value, report.fault)
    assert {row["seq"] for row in read_rows(engine)} == set(range(1, ENTRIES + 1))
