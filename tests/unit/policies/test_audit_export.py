"""Exports: a range of the log that stands by itself, and what was done to one since."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from audit_logs import (
    DAY,
    DIGEST_KEY,
    HASH,
    KEYS,
    LONG_AGO,
    SIGNING,
    Clock,
    fill,
    fill_and_seal,
    read_rows,
    recompute,
    rewrite,
    sealer,
    take_guards,
    witness,
)
from sqlalchemy import Engine

from models.audit import ChainFaultKind
from policies.audit.checkpoint import CheckpointReader
from policies.audit.engine import make_engine
from policies.audit.errors import ExportUnreadable, NothingToExport
from policies.audit.export import Exported, Selection, verify_export, write_export
from policies.audit.migrate import migrate
from policies.audit.prune import plan_pruning, prune
from policies.audit.seal import KeyRing, SigningKey
from policies.audit.store import AuditStore

NOW = datetime(2026, 3, 2, tzinfo=UTC)

Line = dict[str, Any]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    migrate(database_url)
    made = make_engine(database_url)
    yield made
    made.dispose()


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    return tmp_path / "heads.jsonl"


@pytest.fixture
def log(engine: Engine, heads: Path) -> Engine:
    """Twelve entries, one a day from LONG_AGO on, sealed at 4, 8 and 10."""
    clock = Clock(LONG_AGO)
    store = AuditStore(engine, DIGEST_KEY, clock)
    for number in range(1, 13):
        clock.now = LONG_AGO + number * DAY
        fill(store, 1, first=number)
        if number in {4, 8, 10}:
            assert sealer(engine, heads, clock).seal() is not None
    return engine


def export(engine: Engine, heads: Path, file: Path, **selection: Any) -> Exported:
    out = io.StringIO()
    done = write_export(engine, CheckpointReader(heads, KEYS), Selection(**selection), NOW, out)
    file.write_text(out.getvalue(), encoding="ascii")
    return done


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "export.jsonl"


def lines_of(file: Path) -> list[Line]:
    return [json.loads(line) for line in file.read_text(encoding="ascii").splitlines()]


def test_a_whole_log(log: Engine, heads: Path, file: Path) -> None:
    assert export(log, heads, file) == Exported(1, 12, 3, 10)
    lines = lines_of(file)
    assert [line["kind"] for line in lines] == ["audit-export/1", *["entry"] * 12, *["head"] * 3, "end"]
    assert lines[0]["after"] == {"seq": 0, "digest": "0" * 64}
    assert [{**line, "kind": None} for line in lines[1:13]] == [{**row, "kind": None} for row in read_rows(log)]
    report = verify_export(file, KEYS)
    assert (report.ok, report.entries, report.sealed_through, report.unsealed) == (True, 12, 10, 2)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"from_seq": 5}, Exported(5, 12, 2, 10)),
        ({"since": LONG_AGO + 6 * DAY}, Exported(6, 12, 2, 10)),
        # An end goes on to the next signed head.
        ({"until": LONG_AGO + 3 * DAY}, Exported(1, 4, 1, 4)),
        ({"since": LONG_AGO + 5 * DAY, "until": LONG_AGO + 6 * DAY}, Exported(5, 8, 1, 8)),
        ({"until": LONG_AGO + 11 * DAY}, Exported(1, 10, 3, 10)),
        ({"until": LONG_AGO + 12 * DAY}, Exported(1, 11, 3, 10)),
        ({"from_seq": 11}, Exported(11, 12, 0, 0)),
    ],
)
def test_a_range_is_contiguous_and_stands_alone(
    log: Engine, heads: Path, file: Path, selection: dict[str, Any], expected: Exported
) -> None:
    assert export(log, heads, file, **selection) == expected
    report = verify_export(file, KEYS)
    assert report.ok, report
    assert report.entries == expected.last - expected.first + 1
    assert report.unsealed == expected.last - max(expected.sealed_through, expected.first - 1)


@pytest.mark.parametrize(
    "selection",
    [{"from_seq": 13}, {"since": NOW}, {"until": LONG_AGO}, {"since": LONG_AGO + 8 * DAY, "until": LONG_AGO + 7 * DAY}],
)
def test_a_range_without_entries_is_told(log: Engine, heads: Path, file: Path, selection: dict[str, Any]) -> None:
    with pytest.raises(NothingToExport):
        export(log, heads, file, **selection)


def test_a_log_of_several_pages(engine: Engine, heads: Path, file: Path) -> None:
    fill_and_seal(engine, heads, [1500, 1000])
    assert export(engine, heads, file, from_seq=900).first == 900
    assert verify_export(file, KEYS).entries == 1601


def test_a_pruned_log_is_exported_from_its_anchor(log: Engine, heads: Path, file: Path) -> None:
    plan = plan_pruning(log, witness(heads), retention_days=2555, now=NOW, before=LONG_AGO + 8 * DAY)
    prune(log, AuditStore(log, DIGEST_KEY), plan, constitutional_hash=HASH, by="me", now=NOW)
    assert export(log, heads, file, from_seq=2) == Exported(5, 13, 2, 10)
    assert verify_export(file, KEYS).ok


def edit(lines: list[Line]) -> None:
    lines[6]["model_id"] = "other"


def delete(lines: list[Line]) -> None:
    del lines[6]


def swap(lines: list[Line]) -> None:
    lines[6], lines[7] = {**lines[7], "seq": 6}, {**lines[6], "seq": 7}


def cut(lines: list[Line]) -> None:
    del lines[8:13]


def compute_anew(lines: list[Line]) -> None:
    kind = {"kind": "entry"}
    rows = [{name: value for name, value in line.items() if name != "kind"} for line in lines[1:13]]
    rows[5]["model_id"] = "other"
    lines[1:13] = [kind | row for row in recompute(rows, 5)]


def other_type(lines: list[Line]) -> None:
    lines[6]["body"] = 7


@pytest.mark.parametrize(
    ("change", "kind", "seq"),
    [
        (edit, ChainFaultKind.CHANGED, 6),
        (delete, ChainFaultKind.MISSING, 6),
        (swap, ChainFaultKind.REORDERED, 6),
        (cut, ChainFaultKind.MISSING, 8),
        (compute_anew, ChainFaultKind.RECOMPUTED, 5),
        (other_type, ChainFaultKind.CHANGED, 6),
    ],
)
def test_what_was_done_to_an_export_is_found(
    log: Engine, heads: Path, file: Path, change: Callable[[list[Line]], None], kind: ChainFaultKind, seq: int
) -> None:
    export(log, heads, file)
    lines = lines_of(file)
    change(lines)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="ascii")
    fault = verify_export(file, KEYS).fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (kind, seq)


def test_heads_of_an_export_are_not_believed_unsigned(log: Engine, heads: Path, file: Path) -> None:
    """An intruder who computes the entries anew has to bring heads of his own."""
    export(log, heads, file)
    text = file.read_text(encoding="ascii")
    file.write_text(text.replace('"seq":8,"signature"', '"seq":7,"signature"'), encoding="ascii")
    report = verify_export(file, KEYS)
    assert not report.ok
    assert "signature does not fit" in str(report.checkpoint_fault)
    file.write_text(text, encoding="ascii")
    report = verify_export(file, KeyRing([SigningKey(b"\x05" * 32).public]))
    assert (report.ok, report.sealed_through) == (False, 0)
    assert "unknown key" in str(report.checkpoint_fault)


def test_an_export_of_a_forged_log_is_caught_by_heads_kept_elsewhere(log: Engine, heads: Path, file: Path) -> None:
    """Without them it stands by itself: whoever signs can sign anything."""
    kept = list(CheckpointReader(heads, KEYS))
    take_guards(log)
    rows = read_rows(log)
    rows = recompute([*rows[:5], {**rows[5], "model_id": "x"}, *rows[6:]], 5)
    rewrite(log, rows, (12, rows[-1]["digest"]))
    heads.unlink()
    assert sealer(log, heads).seal() is not None
    export(log, heads, file)
    assert verify_export(file, KEYS).ok
    fault = verify_export(file, KEYS, kept).fault
    assert fault is not None
    assert (fault.kind, fault.seq, fault.through) == (ChainFaultKind.RECOMPUTED, 5, 8)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: "", "cut short"),
        (lambda text: text[: len(text) // 2], "no line of an export"),
        (lambda text: text.rpartition('{"heads"')[0], "cut short"),
        (lambda text: text.partition("\n")[2], "line 1 .* does not belong there"),
        (lambda text: text.replace('"heads":3', '"heads":4'), "closes with 4 signed heads and holds 3"),
        (lambda text: text + text, "line 18 .* does not belong there"),
        (lambda text: text.replace('"kind":"entry"', '"kind":"entry","more":1', 1), "is no entry"),
        (lambda text: text.replace('"after"', '"before"'), "header"),
        (lambda text: "[]\n" + text, "line 1 .* no line of an export"),
        (lambda text: "\udcff\n" + text, "line 1 .* no line of an export"),
    ],
)
def test_what_is_no_export_is_said_so(
    log: Engine, heads: Path, file: Path, change: Callable[[str], str], told: str
) -> None:
    export(log, heads, file)
    file.write_text(change(file.read_text(encoding="ascii")), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ExportUnreadable, match=told):
        verify_export(file, KEYS)


def test_the_signing_key_is_not_needed(log: Engine, heads: Path, file: Path) -> None:
    export(log, heads, file)
    assert verify_export(file, KeyRing([bytes.fromhex(SIGNING.public.hex())])).ok
