"""Forgetting: the text is gone wherever SQL holds it, and who used it before is told."""

from __future__ import annotations

import sqlalchemy as sa
from example_parts import example as plain_example
from ledger_parts import spend
from sqlalchemy.engine import Connection

from app.store import Database, cycles, examples, forgetting, outbox, registry, revisions, teacher_usage
from app.store.tables import metadata, pending_feedback
from models.cycle import Cycle, CycleState, Manifest, ManifestMember, TriggerType
from models.example import Example, ExampleStatus

SECRET = "quite unforgettable"


def example(number: int, subject: str | None = None) -> Example:
    texts = {
        "prompt": f"{SECRET} {number}",
        "response": f"{SECRET} answer",
        "corrected_response": f"{SECRET} correction",
    }
    return plain_example(number, subject_token=subject, **texts)


def opened(connection: Connection, model: str) -> Cycle:
    cycle = cycles.open_cycle(
        connection, model_id=model, domain="default", trigger_type=TriggerType.MANUAL, requested_by="a", facts={}
    )
    assert cycle is not None
    return cycle


def revised(connection: Connection, cycle: Cycle, one: Example, compliant: bool = True) -> None:
    row = {
        "example_id": one.example_id,
        "rounds": 1,
        "origin": "revision",
        "compliant": compliant,
        "score": 0.9,
        "target": f"{SECRET} target" if compliant else "",
        "target_digest": "d",
        "history": [],
    }
    revisions.save(connection, cycle.cycle_id, [row])


def trained(connection: Connection, cycle: Cycle) -> None:
    spend(connection, cycle)
    version = {"model_id": cycle.model_id, "cycle_id": cycle.cycle_id, "base_model": "b", "path": "p", "digest": "d"}
    registry.add_version(connection, version | {"version_id": cycle.cycle_id, "statement": {}})


def everything(connection: Connection) -> str:
    return "".join(str(tuple(row)) for table in metadata.sorted_tables for row in connection.execute(sa.select(table)))


def test_a_subject_is_forgotten_everywhere_and_its_uses_are_told(database: Database) -> None:
    mine, other = [example(1, "sub_me"), example(2, "sub_me"), example(3, "sub_me")], example(4, "sub_other")
    with database.write() as connection:
        examples.insert(connection, [*mine, other])
        row = {"target_event_id": "e1", "verdict": "correct", "corrected_response": SECRET, "signed": True}
        examples.add_feedback(connection, [row | {"feedback_id": "r1", "reviewer_id": "bob"}])
        old, present = opened(connection, "old"), opened(connection, "present")
        revised(connection, old, mine[0])
        revised(connection, old, mine[1], compliant=False)
        trained(connection, old)
        old = cycles.transition(connection, old, CycleState.CANCELLED)
        revised(connection, present, mine[2])
        revised(connection, present, other)
    with database.write() as connection:
        wanted = forgetting.of_subject(connection, "sub_me")
        done = forgetting.forget(connection, wanted, requested_by="ann", reason="subject")
    assert wanted == [one.example_id for one in mine]
    assert (done.examples, done.feedback, done.revisions) == (3, 1, 2)
    assert done.open_cycles == (present.cycle_id,)
    assert done.trained_cycles == (old.cycle_id,)
    assert done.versions == (old.cycle_id,)
    with database.read() as connection:
        left = everything(connection)
        stored = examples.get(connection, [one.example_id for one in [*mine, other]])
        [told] = [item for item in outbox.pending(connection) if item.destination == "examples_forgotten"]
        assert connection.execute(sa.select(pending_feedback.c.corrected_response)).scalar_one() is None
    # What is left is the other's alone: prompt, answer, correction and target.
    assert left.count(SECRET) == 4
    assert {stored[one.example_id].status for one in mine} == {ExampleStatus.FORGOTTEN}
    assert stored[other.example_id].status is ExampleStatus.NEW
    assert told.payload["context"]["examples"] == 3
    assert "sub_me" not in str(told.payload)


def test_cycles_that_may_have_sent_the_text_to_a_teacher_are_told(database: Database) -> None:
    mine, other = example(1, "sub_me"), example(2, "sub_other")
    with database.write() as connection:
        examples.insert(connection, [mine, other])
        sent, kept, others = (opened(connection, name) for name in ("sent", "kept", "others"))
        for cycle, one in ((sent, mine), (kept, mine), (others, other)):
            cycles.save_manifest(connection, manifest_of(cycle, one), "0" * 64)
        for cycle in (sent, others):
            teacher_usage.reserve(connection, cycle.cycle_id, "http://teacher/v1", "large")
    with database.write() as connection:
        done = forgetting.forget(connection, [mine.example_id], requested_by="ann", reason="subject")
        [told] = [item for item in outbox.pending(connection) if item.destination == "examples_forgotten"]
    assert done.sent_out == (sent.cycle_id,)
    assert told.payload["context"]["sent_out"] == [sent.cycle_id]


def manifest_of(cycle: Cycle, one: Example) -> Manifest:
    member = ManifestMember(example_id=one.example_id, digest="0" * 64, violation_type="harm", unit=one.example_id)
    return Manifest(
        cycle_id=cycle.cycle_id,
        domain=cycle.domain,
        members=(member,),
        held_out=(),
        public_benign=0,
        excluded={},
        constitution_digest="0" * 64,
    )


def test_forgetting_twice_changes_nothing_more(database: Database) -> None:
    one = example(1, "sub_me")
    with database.write() as connection:
        examples.insert(connection, [one])
        assert forgetting.forget(connection, [one.example_id], requested_by="a", reason="r").examples == 1
    with database.write() as connection:
        assert forgetting.of_subject(connection, "sub_me") == []
        again = forgetting.forget(connection, [one.example_id], requested_by="a", reason="r")
        told = [item for item in outbox.pending(connection) if item.destination == "examples_forgotten"]
    assert again.examples == 0
    assert len(told) == 1


def test_what_is_forgotten_while_it_is_revised_leaves_no_target(database: Database) -> None:
    one, other = example(1), example(2)
    with database.write() as connection:
        examples.insert(connection, [one, other])
        cycle = opened(connection, "m")
        forgetting.forget(connection, [one.example_id], requested_by="a", reason="r")
        revised(connection, cycle, one)
        revised(connection, cycle, other)
        finished = revisions.finished(connection, cycle.cycle_id)
    assert not revisions.usable(finished[one.example_id])
    assert finished[one.example_id].target == ""
    assert revisions.usable(finished[other.example_id])


def test_retention_takes_the_oldest_and_leaves_what_a_cycle_works_on(database: Database) -> None:
    many = [example(number) for number in range(10)]
    with database.write() as connection:
        examples.insert(connection, many)
        cycle = opened(connection, "m")
        revised(connection, cycle, many[2])
        bound = "2026-01-01T00:00:05.000000Z"
        old = forgetting.older_than(connection, bound)
        assert old == [many[number].example_id for number in (0, 1, 3, 4)]
        assert forgetting.older_than(connection, bound, limit=2) == old[:2]
        cycles.transition(connection, cycle, CycleState.CANCELLED)
        assert len(forgetting.older_than(connection, bound)) == 5
