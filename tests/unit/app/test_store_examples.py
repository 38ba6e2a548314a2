"""Examples and feedback: idempotent by identity, whoever writes them and in whatever order they come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import Database, cycles, examples, overview, revisions
from app.store.tables import examples as table
from app.store.tables import pending_feedback
from models.cycle import TriggerType
from models.event import Classification, Identity
from models.example import Example, ExampleStatus, Lineage


def example(number: int, **changes: Any) -> Example:
    values: dict[str, Any] = {
        "example_id": f"{number:032x}",
        "identity": Identity(service="svc", id=f"e{number}", fingerprint=f"f{number}"),
        "event_id": f"e{number}",
        "classification": Classification.CONSTITUTIONAL_VIOLATION,
        "lineage": Lineage(topic="t", partition=1, offset=2**40 + number, trace_id="a" * 32),
        "domain": "default",
        "model_id": "m",
        "subject_token": f"s{number}",
        "workload_id": None,
        "violation_type": "harm",
        "compliance_score": 0.25,
        "prompt": "wie geht's? \U0001f600",
        "response": "gut",
        "created_at": f"2026-01-01T00:00:{number % 60:02d}.000000Z",
    }
    return Example(**(values | changes))


def feedback(target: str, feedback_id: str = "r1", verdict: str = "reject") -> dict[str, Any]:
    return {
        "feedback_id": feedback_id,
        "target_event_id": target,
        "verdict": verdict,
        "corrected_response": None,
        "signed": False,
        "reviewer_id": "bob",
    }


def test_examples_read_back_as_they_were(database: Database) -> None:
    full = example(1, workload_id="w", corrected_response="c", correction_signed=True, priority=7)
    bare = example(2, event_id=None, subject_token=None, compliance_score=None, response="")
    bare = bare.model_copy(update={"lineage": Lineage(topic="t", partition=0, offset=0)})
    with database.write() as connection:
        assert examples.insert(connection, [full, bare]) == 2
    with database.read() as connection:
        found = examples.get(connection, [full.example_id, bare.example_id, "unknown"])
    assert found == {full.example_id: full, bare.example_id: bare}


def test_the_same_batch_twice_changes_nothing(database: Database) -> None:
    batch = [example(number) for number in range(5)]
    with database.write() as connection:
        assert examples.insert(connection, batch[:3]) == 3
        examples.mark(connection, [batch[0].example_id], ExampleStatus.USED, "c1")
    again = [one.model_copy(update={"prompt": "changed", "priority": 99}) for one in batch]
    with database.write() as connection:
        assert examples.insert(connection, again) == 2
        assert examples.insert(connection, again) == 0
    with database.read() as connection:
        found = examples.get(connection, [one.example_id for one in batch])
    assert [found[one.example_id].prompt for one in batch] == [one.prompt for one in batch[:3]] + ["changed"] * 2
    assert found[batch[0].example_id].status is ExampleStatus.USED


def test_many_workers_write_the_same_batch(database: Database) -> None:
    """As at a rebalance; in opposite orders, which must not end in a deadlock."""
    workers = 6
    batch = [example(number) for number in range(1500)]
    start = threading.Barrier(workers)

    def write(number: int) -> tuple[int, int]:
        mine = batch if number % 2 else batch[::-1]
        rows = [feedback(one.event_id or "", f"r-{one.event_id}") for one in mine]
        start.wait(10)
        with database.write() as connection:
            return examples.insert(connection, mine), examples.add_feedback(connection, rows)

    with ThreadPoolExecutor(workers) as pool:
        counts = [done.result(60) for done in [pool.submit(write, number) for number in range(workers)]]
    assert sum(new for new, _ in counts) == len(batch)
    assert sum(new for _, new in counts) == len(batch)
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() == len(batch)
        assert overview.counts(connection)["examples"] == {"new": len(batch)}


def test_who_waits_for_a_cycle(database: Database) -> None:
    urgent, old, young = example(3, priority=20), example(1), example(2)
    with database.write() as connection:
        examples.insert(
            connection,
            [
                young,
                old,
                urgent,
                example(4, model_id="other"),
                example(5, domain="health"),
                example(6, status=ExampleStatus.RETIRED),
                example(7, status=ExampleStatus.FORGOTTEN),
            ],
        )
        assert examples.waiting(connection, "m", "default") == [urgent, old, young]
        assert sorted(examples.count_new(connection)) == [
            ("m", "default", 3),
            ("m", "health", 1),
            ("other", "default", 1),
        ]
        examples.mark(connection, [old.example_id, f"{6:032x}"], ExampleStatus.USED, "c1")
        assert examples.waiting(connection, "m", "default") == [urgent, young]
        rows = connection.execute(sa.select(table.c.example_id, table.c.cycle_id, table.c.status)).all()
    marked = {row.example_id: (row.cycle_id, row.status) for row in rows if row.cycle_id}
    assert marked == {old.example_id: ("c1", "used")}


def test_more_examples_than_one_statement_takes(database: Database) -> None:
    batch = [example(number) for number in range(1201)]
    ids = [one.example_id for one in batch]
    with database.write() as connection:
        assert examples.insert(connection, batch) == 1201
        examples.mark(connection, ids, ExampleStatus.USED, "c1")
        assert {one.status for one in examples.get(connection, ids).values()} == {ExampleStatus.USED}


@pytest.mark.parametrize("order", ["feedback first", "event first"])
def test_feedback_finds_its_event(database: Database, order: str) -> None:
    steps: list[Callable[[Connection], int]] = [
        lambda connection: examples.insert(connection, [example(1), example(2)]),
        lambda connection: examples.add_feedback(connection, [feedback("e1"), feedback("nowhere", "r2")]),
    ]
    for step in steps if order == "event first" else steps[::-1]:
        with database.write() as connection:
            assert step(connection) == 2
    with database.write() as connection:
        [(row, target)] = examples.unapplied_feedback(connection)
        assert (row.feedback_id, row.reviewer_id, target) == ("r1", "bob", f"{1:032x}")
        examples.apply_feedback(connection, "r1", target, {"priority": 30})
        # Told once more, it changes nothing more.
        examples.apply_feedback(connection, "r1", target, {"priority": 50})
        assert examples.unapplied_feedback(connection) == []
        assert examples.add_feedback(connection, [feedback("e1")]) == 0
        assert examples.unapplied_feedback(connection) == []
        assert examples.get(connection, [target])[target].priority == 30
        waiting = connection.execute(
            sa.select(pending_feedback.c.feedback_id).where(pending_feedback.c.applied_at.is_(None))
        )
        assert waiting.scalars().all() == ["r2"]


def test_feedback_on_an_event_id_that_two_share_matches_neither(database: Database) -> None:
    other = example(2, event_id="e1", identity=Identity(service="other", id="e1", fingerprint="f"))
    with database.write() as connection:
        examples.insert(connection, [example(1), other, example(3, event_id=None)])
        examples.add_feedback(connection, [feedback("e1")])
        assert examples.unapplied_feedback(connection) == []


def test_revisions_are_kept_once(database: Database) -> None:
    def row(number: int, target: str) -> dict[str, Any]:
        return {
            "example_id": f"{number:032x}",
            "rounds": 1,
            "origin": "critique",
            "compliant": True,
            "score": 0.5,
            "target": target,
            "target_digest": "d",
            "history": [{"round": 1}],
        }

    with database.write() as connection:
        examples.insert(connection, [example(1), example(2)])
        ids = []
        for model in ("m", "n"):
            cycle = cycles.open_cycle(
                connection, model_id=model, domain="d", trigger_type=TriggerType.COUNT, requested_by="c", facts={}
            )
            assert cycle is not None
            ids.append(cycle.cycle_id)
        assert revisions.save(connection, ids[0], [row(1, "first")]) == 1
        assert revisions.save(connection, ids[0], [row(1, "second"), row(2, "other")]) == 1
        assert revisions.save(connection, ids[1], [row(1, "another cycle's")]) == 1
        kept = revisions.finished(connection, ids[0])
    assert {key: (one.target, one.history) for key, one in kept.items()} == {
        f"{1:032x}": ("first", [{"round": 1}]),
        f"{2:032x}": ("other", [{"round": 1}]),
    }


def test_batches_of_all_sizes_are_few_statements(tmp_path: Path) -> None:
    """Found by the soak: SQLite's driver keeps statements prepared, one for each size of batch."""
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    database.migrate()
    told: set[str] = set()

    def heard(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        told.add(statement)

    sa.event.listen(database.engine, "before_cursor_execute", heard)
    number = 0
    for size in (1, 49, 50, 51, 99, 100, 149, 200, 250):
        with database.write() as connection:
            assert examples.insert(connection, [example(number + one) for one in range(size)]) == size
        number += size
    database.close()
    inserts = [statement for statement in told if statement.startswith("INSERT")]
    assert len(inserts) == len({1, 49, 50}), [len(statement) for statement in inserts]
