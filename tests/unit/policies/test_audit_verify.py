"""What a verification with signed heads names that the chain alone does not, and how it speaks of the heads' faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from audit_logs import DIGEST_KEY, Row, fill, fill_and_seal, read_rows, recompute, rewrite, take_guards, witness
from sqlalchemy import Engine, text

from models.audit import ChainFaultKind, ChainReport
from policies.audit.engine import make_engine
from policies.audit.migrate import migrate
from policies.audit.store import AuditStore
from policies.audit.verify import verify_log


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
def sealed(engine: Engine, path: Path) -> Engine:
    """Sealed at 4, 8 and 12; entries 13 and 14 are not. The guards are gone."""
    fill_and_seal(engine, path, [4, 4, 4])
    fill(AuditStore(engine, DIGEST_KEY), 2, first=13)
    take_guards(engine)
    return engine


def put(engine: Engine, rows: list[Row]) -> None:
    """The log and a head that fits it."""
    rewrite(engine, rows, (len(rows), rows[-1]["digest"] if rows else "0" * 64))


def found(report: ChainReport) -> tuple[ChainFaultKind, int, int | None]:
    assert report.fault is not None
    assert not report.ok
    return report.fault.kind, report.fault.seq, report.fault.through


def changed(rows: list[Row], place: int) -> list[Row]:
    return [*rows[: place - 1], {**rows[place - 1], "model_id": "other"}, *rows[place:]]


def test_the_tail_that_is_not_sealed_is_named(sealed: Engine, path: Path) -> None:
    report = verify_log(sealed, witness(path))
    assert (report.ok, report.entries, report.sealed_through, report.unsealed) == (True, 14, 12, 2)
    assert report.checkpoint_fault is None
    without = verify_log(sealed)
    assert (without.ok, without.sealed_through, without.unsealed) == (True, None, None)


@pytest.mark.parametrize(("place", "first", "through"), [(1, 1, 4), (4, 1, 4), (5, 5, 8), (8, 5, 8), (12, 9, 12)])
def test_a_chain_computed_anew_is_named_by_the_heads_around_it(
    sealed: Engine, path: Path, place: int, first: int, through: int
) -> None:
    put(sealed, recompute(changed(read_rows(sealed), place), place - 1))
    assert verify_log(sealed).ok, "the chain alone does not show it"
    report = verify_log(sealed, witness(path))
    assert found(report) == (ChainFaultKind.RECOMPUTED, first, through)
    assert report.sealed_through == first - 1


@pytest.mark.parametrize("left", [0, 3, 8, 11])
def test_a_log_cut_short_with_its_head_lowered_is_missing_entries(sealed: Engine, path: Path, left: int) -> None:
    put(sealed, read_rows(sealed)[:left])
    assert verify_log(sealed).ok
    assert found(verify_log(sealed, witness(path)))[:2] == (ChainFaultKind.MISSING, left + 1)


def test_the_first_fault_is_named_and_not_the_last(sealed: Engine, path: Path) -> None:
    rows = changed(read_rows(sealed), 3)
    put(sealed, recompute(changed(rows, 10), 9))
    assert found(verify_log(sealed, witness(path))) == (ChainFaultKind.CHANGED, 3, None)


def test_an_older_copy_of_the_heads_vouches_for_what_it_can(sealed: Engine, path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    report = verify_log(sealed, witness(copy))
    assert (report.ok, report.sealed_through, report.unsealed) == (True, 8, 6)
    put(sealed, recompute(changed(read_rows(sealed), 6), 5))
    assert found(verify_log(sealed, witness(copy))) == (ChainFaultKind.RECOMPUTED, 5, 8)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: [lines[0], lines[2]], "line 2"),
        (lambda lines: [lines[0], lines[1].replace(b'"seq":8', b'"seq":9'), lines[2]], "line 2"),
        (lambda lines: [], "holds no signed head"),
    ],
)
def test_a_fault_of_the_heads_is_told_beside_the_logs(
    sealed: Engine, path: Path, change: Callable[[list[bytes]], list[bytes]], told: str
) -> None:
    lines = change(path.read_bytes().splitlines(keepends=True))
    path.write_bytes(b"".join(lines))
    report = verify_log(sealed, witness(path))
    assert (report.ok, report.fault) == (False, None)
    assert report.checkpoint_fault is not None
    assert told in report.checkpoint_fault
    assert report.sealed_through == (12 if lines else 0)
    put(sealed, changed(read_rows(sealed), 2))
    report = verify_log(sealed, witness(path))
    assert found(report)[:2] == (ChainFaultKind.CHANGED, 2)
    assert told in str(report.checkpoint_fault)


def test_a_log_of_the_version_before_can_be_verified(engine: Engine, path: Path) -> None:
    fill_and_seal(engine, path, [4])
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE audit_prunings"))
    assert verify_log(engine, witness(path)).ok
