"""Pruning: only what is old and sealed as old, said first in the log, and never in a way that hides a deletion."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from audit_logs import (
    DAY,
    DIGEST_KEY,
    HASH,
    LONG_AGO,
    Clock,
    fill,
    read_rows,
    recompute,
    rewrite,
    sealer,
    take_guards,
    witness,
)
from sqlalchemy import Engine, delete, insert, select, text, update

from models.audit import ChainFaultKind, ChainHead, SignedHead
from policies.audit import prune as pruning
from policies.audit.checkpoint import CheckpointReader
from policies.audit.engine import make_engine
from policies.audit.errors import AuditStoreUnavailable, PruneRefused, SealBroken
from policies.audit.migrate import migrate
from policies.audit.prune import Pruning, plan_pruning, prune
from policies.audit.seal import SigningKey, head_line
from policies.audit.store import AuditStore
from policies.audit.tables import audit_entries, audit_prunings
from policies.audit.verify import MIN_RETENTION_DAYS, verify_log

NOW = LONG_AGO + 4000 * DAY


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    migrate(database_url)
    made = make_engine(database_url)
    yield made
    made.dispose()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "heads.jsonl"


@pytest.fixture
def clock() -> Clock:
    return Clock(LONG_AGO)


@pytest.fixture
def store(engine: Engine, clock: Clock) -> AuditStore:
    return AuditStore(engine, DIGEST_KEY, clock)


@pytest.fixture
def old(engine: Engine, store: AuditStore, path: Path, clock: Clock) -> list[SignedHead]:
    """Five entries every 500 days from LONG_AGO on, ten times, sealed a day later; then it is NOW."""
    heads = []
    for number in range(10):
        clock.now = LONG_AGO + 500 * number * DAY
        fill(store, 5, first=5 * number + 1)
        clock.now += DAY
        head = sealer(engine, path, clock).seal()
        assert head is not None
        heads.append(head)
    clock.now = NOW
    return heads


def plan(engine: Engine, path: Path, before: datetime | None = None, days: int = MIN_RETENTION_DAYS) -> Pruning:
    return plan_pruning(engine, witness(path), retention_days=days, now=NOW, before=before)


def carry_out(engine: Engine, store: AuditStore, made: Pruning) -> str:
    return prune(engine, store, made, constitutional_hash=HASH, by="an auditor", now=NOW)


def test_what_is_old_enough_is_taken_and_the_rest_verifies(
    engine: Engine, store: AuditStore, path: Path, old: list[SignedHead], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "STEP_ENTRIES", 5)
    made = plan(engine, path)
    # 4000 - 2555 days: the heads of day 1, 501 and 1001 are older.
    assert (made.through, made.entries, [head.seq for head in made.steps]) == (15, 15, [5, 10, 15])
    assert len(read_rows(engine)) == 50, "a plan takes nothing"
    entry_id = carry_out(engine, store, made)
    rows = read_rows(engine)
    assert [row["seq"] for row in rows] == list(range(16, 52))
    assert rows[-1]["entry_id"] == entry_id
    said = json.loads(rows[-1]["body"])
    assert said["event_type"] == "audit_pruned"
    assert said["context"] == {
        "through": 15,
        "digest": old[2].digest,
        "sealed_at": old[2].sealed_at,
        "entries": 15,
        "older_than": "2019-02-13T00:00:00.000000Z",
        "by": "an auditor",
    }
    report = verify_log(engine, witness(path), NOW)
    assert report.fault is None
    assert report.anchor is not None
    assert (report.ok, report.entries, report.anchor.seq, report.sealed_through) == (True, 36, 15, 50)
    assert sealer(engine, path, Clock(NOW)).seal() is not None
    assert verify_log(engine, witness(path), NOW).sealed_through == 51
    assert not plan(engine, path).steps, "there is nothing more to take"
    assert [head.seq for head in CheckpointReader(path, witness(path).keys)][:3] == [5, 10, 15], "the heads are kept"
    fill(store, 1, first=100)
    assert verify_log(engine, witness(path), NOW).ok


def test_a_later_pruning_goes_on_from_the_first(
    engine: Engine, store: AuditStore, path: Path, old: list[SignedHead]
) -> None:
    carry_out(engine, store, plan(engine, path, before=LONG_AGO + 400 * DAY))
    assert read_rows(engine)[0]["seq"] == 6
    made = plan(engine, path, before=LONG_AGO + 502 * DAY)
    assert (made.through, made.entries) == (10, 5)
    carry_out(engine, store, made)
    report = verify_log(engine, witness(path), NOW)
    assert report.anchor is not None
    assert (report.ok, report.anchor.seq) == (True, 10)


@pytest.mark.parametrize(
    ("before", "days"),
    [
        (NOW - MIN_RETENTION_DAYS * DAY + timedelta(seconds=1), MIN_RETENTION_DAYS),
        (NOW - 2999 * DAY, 3000),
        (NOW, 1),
    ],
)
def test_what_must_be_kept_is_refused(
    engine: Engine, path: Path, old: list[SignedHead], before: datetime, days: int
) -> None:
    with pytest.raises(PruneRefused, match="must be kept"):
        plan(engine, path, before, days)
    assert len(read_rows(engine)) == 50


def test_an_entry_that_is_old_but_was_sealed_late_is_kept(
    engine: Engine, store: AuditStore, path: Path, clock: Clock
) -> None:
    fill(store, 5)
    clock.now = LONG_AGO + 1446 * DAY  # one day short of the retention
    assert sealer(engine, path, clock).seal() is not None
    assert not plan(engine, path).steps
    later = NOW + 2 * DAY
    assert plan_pruning(engine, witness(path), retention_days=MIN_RETENTION_DAYS, now=later).through == 5


def test_an_engine_whose_clock_runs_ahead_keeps_its_entries(
    engine: Engine, store: AuditStore, path: Path, clock: Clock
) -> None:
    fill(store, 3)
    assert sealer(engine, path, clock).seal() is not None
    clock.now = NOW - DAY
    fill(store, 3, first=4)
    clock.now = LONG_AGO + DAY
    assert sealer(engine, path, clock).seal() is not None
    assert plan(engine, path).through == 3


def test_what_is_not_sealed_is_not_taken(engine: Engine, store: AuditStore, path: Path) -> None:
    fill(store, 5)
    with pytest.raises(PruneRefused, match=r"does not verify, so nothing is pruned: .* does not exist"):
        plan(engine, path)


def test_a_log_that_does_not_verify_is_not_pruned(engine: Engine, path: Path, old: list[SignedHead]) -> None:
    take_guards(engine)
    rows = read_rows(engine)
    rewrite(engine, [*rows[:2], {**rows[2], "model_id": "x"}, *rows[3:]])
    with pytest.raises(PruneRefused, match="entry 3"):
        plan(engine, path)


# --- the database's own guards -----------------------------------------------------------------------------------


def pruning_row(signed: SignedHead, **changes: object) -> dict[str, object]:
    row = {"seq": signed.seq, "digest": signed.digest, "head": head_line(signed), "entries": signed.seq}
    return {**row, "entry_id": "e", "pruned_at": "2026-03-02T09:16:00.000000Z", **changes}


def test_the_database_deletes_nothing_above_the_anchor(
    engine: Engine, store: AuditStore, path: Path, old: list[SignedHead]
) -> None:
    carry_out(engine, store, plan(engine, path))
    above = audit_entries.c.seq > 15
    for statement in (delete(audit_entries).where(audit_entries.c.seq == 16), delete(audit_entries).where(above)):
        with pytest.raises(Exception, match="append-only"), engine.begin() as connection:
            connection.execute(statement)
    with pytest.raises(Exception, match="append-only"), engine.begin() as connection:
        connection.execute(update(audit_entries).where(audit_entries.c.seq == 16).values(model_id="x"))
    if engine.dialect.name == "postgresql":
        for table in ("audit_entries", "audit_prunings"):
            with pytest.raises(Exception, match="append-only"), engine.begin() as connection:
                connection.execute(text(f"TRUNCATE {table}"))
    else:
        for column in ("seq", "entry_id", "previous"):
            row = {**read_rows(engine)[0], "seq": 900, "entry_id": "x", "previous": "x"}
            row[column] = read_rows(engine)[0][column]
            with pytest.raises(Exception, match="append-only"), engine.begin() as connection:
                connection.execute(insert(audit_entries).prefix_with("OR REPLACE"), row)
    assert len(read_rows(engine)) == 36


def test_the_anchor_only_grows(engine: Engine, store: AuditStore, path: Path, old: list[SignedHead]) -> None:
    carry_out(engine, store, plan(engine, path, before=LONG_AGO + 502 * DAY))
    lower = pruning_row(old[0])
    beyond = pruning_row(old[2], seq=4000)
    other = pruning_row(old[2], digest="f" * 64)
    for row in (lower, beyond, other):
        with pytest.raises(Exception, match="after the pruning before it"), engine.begin() as connection:
            connection.execute(insert(audit_prunings), row)
    for statement in (update(audit_prunings).values(seq=1), delete(audit_prunings)):
        with pytest.raises(Exception, match="append-only"), engine.begin() as connection:
            connection.execute(statement)
    with engine.begin() as connection:
        assert connection.execute(select(audit_prunings.c.seq)).scalars().all() == [10]


def test_a_pruning_that_is_cut_off_leaves_a_log_that_verifies(
    engine: Engine, store: AuditStore, path: Path, old: list[SignedHead], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "STEP_ENTRIES", 5)
    taken = []
    take = pruning._take

    def failing(*arguments: object) -> None:
        if taken:
            raise AuditStoreUnavailable("gone")
        taken.append(take(*arguments))  # type: ignore[arg-type,func-returns-value]

    monkeypatch.setattr(pruning, "_take", failing)
    with pytest.raises(AuditStoreUnavailable):
        carry_out(engine, store, plan(engine, path))
    assert read_rows(engine)[0]["seq"] == 6
    assert verify_log(engine, witness(path), NOW).ok
    monkeypatch.setattr(pruning, "_take", take)
    carry_out(engine, store, plan(engine, path))
    assert read_rows(engine)[0]["seq"] == 16
    assert verify_log(engine, witness(path), NOW).ok


# --- deletions that are passed off as prunings --------------------------------------------------------------------


def young(engine: Engine, path: Path) -> list[SignedHead]:
    """Ten entries of today in two sealed ranges."""
    store = AuditStore(engine, DIGEST_KEY)
    made = []
    for first in (1, 6):
        fill(store, 5, first=first)
        head = sealer(engine, path).seal()
        assert head is not None
        made.append(head)
    return made


@pytest.mark.parametrize(
    ("forge", "told"),
    [
        (lambda head: pruning_row(head), "must be kept 2555 days"),
        (lambda head: pruning_row(head, head="{}"), "no signed head of that entry is kept"),
        (
            lambda head: pruning_row(
                head, head=head_line(head.model_copy(update={"sealed_at": "2015-03-01T00:00:00.000000Z"}))
            ),
            "signature does not fit",
        ),
        (lambda head: pruning_row(head, digest="f" * 64), "is that of entry 5|is not the one that was sealed"),
    ],
)
def test_young_entries_cannot_be_passed_off_as_pruned(engine: Engine, path: Path, forge: object, told: str) -> None:
    head, _ = young(engine, path)
    take_guards(engine)
    with engine.begin() as connection:
        connection.execute(insert(audit_prunings), forge(head))  # type: ignore[operator]
        connection.execute(delete(audit_entries).where(audit_entries.c.seq <= head.seq))
    fault = verify_log(engine, witness(path)).fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (ChainFaultKind.ANCHOR, 5)
    assert re.search(told, fault.detail)
    with pytest.raises(SealBroken, match=told):
        sealer(engine, path).check()


def test_an_intruder_with_a_key_of_his_own_proves_nothing(engine: Engine, path: Path) -> None:
    young(engine, path)
    take_guards(engine)
    rows = read_rows(engine)
    rows = recompute([{**rows[0], "model_id": "x"}, *rows[1:]], 0)
    head = SigningKey(b"\x09" * 32).seal(
        ChainHead(seq=4, digest=rows[3]["digest"]), "2015-03-01T00:00:00.000000Z", None
    )
    rewrite(engine, rows[4:], (10, rows[-1]["digest"]))
    with engine.begin() as connection:
        connection.execute(insert(audit_prunings), pruning_row(head))
    fault = verify_log(engine, witness(path)).fault
    assert fault is not None
    assert "unknown key" in fault.detail


def test_entries_put_back_before_the_anchor_are_found(
    engine: Engine, store: AuditStore, path: Path, old: list[SignedHead]
) -> None:
    before = read_rows(engine)[14]
    carry_out(engine, store, plan(engine, path))
    take_guards(engine)
    rewrite(engine, [before, *read_rows(engine)])
    fault = verify_log(engine, witness(path), NOW).fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (ChainFaultKind.MISSING, 16)


def test_without_a_public_key_a_pruned_log_is_not_believed(
    engine: Engine, store: AuditStore, path: Path, old: list[SignedHead]
) -> None:
    carry_out(engine, store, plan(engine, path))
    fault = store.verify().fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (ChainFaultKind.ANCHOR, 15)


def test_a_lost_file_of_heads_does_not_lose_the_anchors_proof(
    engine: Engine, store: AuditStore, path: Path, old: list[SignedHead]
) -> None:
    carry_out(engine, store, plan(engine, path))
    path.unlink()
    report = verify_log(engine, witness(path), NOW)
    assert report.fault is None
    assert report.checkpoint_fault is not None
    assert sealer(engine, path, Clock(NOW)).seal() is not None
    assert verify_log(engine, witness(path), datetime.now(UTC)).ok
