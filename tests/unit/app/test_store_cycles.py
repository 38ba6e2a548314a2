"""Cycles: one open a model, changed by compare-and-set, every change told in the same transaction."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import Database, cycles, outbox, overview, progress
from app.store.cycles import IllegalTransition, StaleCycle
from app.store.outbox import AUDIT, KAFKA, OutboxItem
from app.topics import CYCLES
from models.cycle import (
    TERMINAL_STATES,
    TRANSITIONS,
    Cycle,
    CycleRecord,
    CycleState,
    Manifest,
    ManifestMember,
    TrainingPlan,
    TriggerType,
)

PLAN = TrainingPlan(
    base_model="base",
    lora_rank=16,
    lora_alpha=32,
    lora_dropout=0.1,
    target_modules=("q_proj",),
    epochs=3,
    sample_rate=0.5,
    steps=6,
    learning_rate=5e-3,
    max_grad_norm=1.0,
    epsilon_target=8.0,
    delta=1e-5,
)
LEGAL = [(source, target) for source, targets in TRANSITIONS.items() for target in targets]
ILLEGAL = [pair for pair in itertools.product(CycleState, CycleState) if pair not in LEGAL]


def opened(connection: Connection, model_id: str = "m", requested_by: str = "alice") -> Cycle:
    cycle = cycles.open_cycle(
        connection,
        model_id=model_id,
        domain="default",
        trigger_type=TriggerType.MANUAL,
        requested_by=requested_by,
        facts={"waiting_examples": 3},
    )
    assert cycle is not None
    return cycle


def in_state(connection: Connection, state: CycleState, model_id: str = "m") -> Cycle:
    """A cycle walked to a state by the shortest legal way."""
    ways: dict[CycleState, list[CycleState]] = {CycleState.PROPOSED: []}
    queue = [CycleState.PROPOSED]
    for source in queue:
        for target in sorted(TRANSITIONS[source]):
            if target not in ways:
                ways[target] = [*ways[source], target]
                queue.append(target)
    cycle = opened(connection, model_id)
    for step in ways[state]:
        cycle = cycles.transition(connection, cycle, step)
    return cycle


def told(database: Database) -> list[OutboxItem]:
    with database.read() as connection:
        return outbox.pending(connection, 10_000)


def test_an_opened_cycle_reads_back(database: Database) -> None:
    with database.write() as connection:
        cycle = opened(connection)
    assert (cycle.state, cycle.version, cycle.facts) == (CycleState.PROPOSED, 1, {"waiting_examples": 3})
    with database.read() as connection:
        assert cycles.get(connection, cycle.cycle_id) == cycle
        assert cycles.get(connection, "unknown") is None
        assert cycles.list_cycles(connection) == [cycle]


def test_a_model_has_one_open_cycle_and_the_next_once_it_ends(database: Database) -> None:
    with database.write() as connection:
        first = opened(connection)
        opened(connection, "other")
        assert (
            cycles.open_cycle(
                connection, model_id="m", domain="else", trigger_type=TriggerType.COUNT, requested_by="c", facts={}
            )
            is None
        )
        cycles.transition(connection, first, CycleState.CANCELLED)
        assert opened(connection).cycle_id != first.cycle_id


def test_of_many_that_open_at_once_one_succeeds(database: Database) -> None:
    workers = 8
    start = threading.Barrier(workers)

    def open_one(number: int) -> Cycle | None:
        start.wait(10)
        with database.write() as connection:
            return cycles.open_cycle(
                connection,
                model_id="m",
                domain="default",
                trigger_type=TriggerType.COUNT,
                requested_by=f"worker {number}",
                facts={},
            )

    with ThreadPoolExecutor(workers) as pool:
        results = [done.result(60) for done in [pool.submit(open_one, number) for number in range(workers)]]
    winners = [cycle for cycle in results if cycle is not None]
    assert len(winners) == 1
    with database.read() as connection:
        assert cycles.list_cycles(connection) == winners
    assert [item.payload["cycle_id"] for item in told(database)] == [winners[0].cycle_id] * 2


@pytest.mark.postgres
def test_a_rival_that_only_the_index_sees(postgres_url: str) -> None:
    """Not there when we look, there when we write; on SQLite writers come one after the other."""
    database = Database(postgres_url)
    database.migrate()
    present, commit = threading.Event(), threading.Event()

    def rival() -> None:
        with database.write() as connection:
            opened(connection)
            present.set()
            commit.wait(10)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(rival)
        assert present.wait(10)
        with database.write() as connection:
            before = opened(connection, "before")
            threading.Timer(0.3, commit.set).start()
            late = cycles.open_cycle(
                connection, model_id="m", domain="d", trigger_type=TriggerType.COUNT, requested_by="c", facts={}
            )
            assert late is None
            progress.save(connection, before.cycle_id, "revise", 1, 2, {})
        other.result(60)
    with database.read() as connection:
        assert {cycle.model_id for cycle in cycles.list_cycles(connection)} == {"m", "before"}
        assert progress.get(connection, before.cycle_id) is not None
    assert len(told(database)) == 4
    database.close()


def test_every_legal_transition(database: Database) -> None:
    for number, (source, target) in enumerate(LEGAL):
        with database.write() as connection:
            before = in_state(connection, source, f"m{number}")
            after = cycles.transition(connection, before, target, {"why": "a test"})
            assert cycles.get(connection, before.cycle_id) == after
        assert (after.state, after.version) == (target, before.version + 1)


def test_every_other_transition_is_refused_and_changes_nothing(database: Database) -> None:
    assert len(LEGAL) + len(ILLEGAL) == len(CycleState) ** 2
    with database.write() as connection:
        for number, state in enumerate(CycleState):
            in_state(connection, state, f"m{number}")
    before = told(database)
    with database.write() as connection:
        by_state = {cycle.state: cycle for cycle in cycles.list_cycles(connection)}
        for source, target in ILLEGAL:
            with pytest.raises(IllegalTransition, match=f"{source} to {target}"):
                cycles.transition(connection, by_state[source], target)
            assert cycles.get(connection, by_state[source].cycle_id) == by_state[source]
    assert told(database) == before


def test_a_cycle_that_moved_on_is_stale(database: Database) -> None:
    with database.write() as connection:
        seen = opened(connection)
        cycles.transition(connection, seen, CycleState.PREPARING)
    before = told(database)
    with pytest.raises(StaleCycle, match="version 1"), database.write() as connection:
        cycles.transition(connection, seen, CycleState.CANCELLED)
    assert told(database) == before
    with database.read() as connection:
        assert [event["state"] for event in cycles.history(connection, seen.cycle_id)] == ["proposed", "preparing"]


def test_of_many_transitions_at_once_one_succeeds(database: Database) -> None:
    workers = 6
    with database.write() as connection:
        seen = opened(connection)
    start = threading.Barrier(workers)

    def move(number: int) -> bool:
        start.wait(10)
        try:
            with database.write() as connection:
                cycles.transition(connection, seen, CycleState.PREPARING, {"worker": number})
        except StaleCycle:
            return False
        return True

    with ThreadPoolExecutor(workers) as pool:
        results = [done.result(60) for done in [pool.submit(move, number) for number in range(workers)]]
    assert results.count(True) == 1
    with database.read() as connection:
        history = cycles.history(connection, seen.cycle_id)
    assert [event["version"] for event in history] == [1, 2]
    assert history[1]["detail"] == {"worker": results.index(True)}
    assert len(told(database)) == 4


def test_each_change_is_told_to_the_audit_engine_and_then_to_kafka(database: Database) -> None:
    with database.write() as connection:
        cycle = opened(connection)
        cycle = cycles.transition(connection, cycle, CycleState.PREPARING, {"note": 1})
        cycles.transition(connection, cycle, CycleState.REJECTED, reasons=({"code": "c", "message": "m"},))
    items = told(database)
    assert [(item.channel, item.destination) for item in items] == [
        (AUDIT, "cycle_transition"),
        (KAFKA, CYCLES.name),
        (AUDIT, "cycle_transition"),
        (KAFKA, CYCLES.name),
        (AUDIT, "optimization_cycle"),
        (KAFKA, CYCLES.name),
    ]
    entries = [item.payload for item in items if item.channel == AUDIT]
    assert [entry["entry_id"] for entry in entries] == [f"cycle-{cycle.cycle_id}-{version}" for version in (1, 2, 3)]
    assert [entry["state"] for entry in entries] == ["proposed", "preparing", "rejected"]
    assert entries[1]["context"] == {"note": 1}
    assert entries[2]["success"] is False
    records = [CycleRecord.model_validate(item.payload) for item in items if item.channel == KAFKA]
    assert [(record.state, record.version) for record in records] == [
        (CycleState.PROPOSED, 1),
        (CycleState.PREPARING, 2),
        (CycleState.REJECTED, 3),
    ]
    assert {item.key for item in items if item.channel == KAFKA} == {"m"}


def test_a_promotion_counts_as_success(database: Database) -> None:
    with database.write() as connection:
        in_state(connection, CycleState.PROMOTED)
    last = [item.payload for item in told(database) if item.channel == AUDIT][-1]
    assert (last["event_type"], last["success"], last["trigger_type"]) == ("optimization_cycle", True, "manual")


def test_what_is_rolled_back_is_not_told(database: Database) -> None:
    with database.write() as connection:
        cycle = opened(connection)
    before = told(database)

    def fail() -> None:
        with database.write() as connection:
            cycles.transition(connection, cycle, CycleState.PREPARING)
            assert len(outbox.pending(connection)) == len(before) + 2
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert told(database) == before
    with database.read() as connection:
        assert cycles.get(connection, cycle.cycle_id) == cycle
        assert len(cycles.history(connection, cycle.cycle_id)) == 1


def test_what_a_transition_changes_besides_the_state(database: Database) -> None:
    with database.write() as connection:
        cycle = in_state(connection, CycleState.REVISING)
        changed = cycles.transition(
            connection,
            cycle,
            CycleState.AWAITING_APPROVAL,
            plan=PLAN,
            plan_digest="0" * 64,
            manifest_digest="1" * 64,
            facts={"members": 4},
            reasons=({"code": "approval_missing", "message": "ask"},),
        )
        assert cycles.get(connection, cycle.cycle_id) == changed
    assert changed.plan == PLAN
    assert changed.facts == {"members": 4}


def test_lists_and_the_last_that_ended(database: Database) -> None:
    with database.write() as connection:
        assert cycles.last_finished(connection, "m0") is None
        ended = [in_state(connection, state, f"m{number}") for number, state in enumerate(sorted(TERMINAL_STATES))]
        open_ones = [opened(connection, f"open{number}") for number in range(3)]
        assert cycles.last_finished(connection, "open0") is None
        assert cycles.last_finished(connection, "m0") == ended[0].updated_at
        assert cycles.list_cycles(connection, open_only=True) == open_ones
        assert cycles.list_cycles(connection) == [*reversed(open_ones), *reversed(ended)]
        assert cycles.list_cycles(connection, limit=2) == [open_ones[2], open_ones[1]]
        counted = overview.counts(connection)
    assert counted["cycles"] == {"proposed": 3} | {state.value: 1 for state in TERMINAL_STATES}
    assert counted["outbox"] == len(told(database))
    assert counted["examples"] == {}


def test_a_manifest_once_written_stays(database: Database) -> None:
    member = ManifestMember(example_id="e", digest="d", violation_type="v", unit="u")
    with database.write() as connection:
        cycle = opened(connection)
        first = Manifest(
            cycle_id=cycle.cycle_id,
            domain="default",
            members=(member,),
            held_out=(),
            public_benign=2,
            excluded={"residual_pii": 1},
            constitution_digest="c",
        )
        cycles.save_manifest(connection, first, "digest")
        cycles.save_manifest(connection, first.model_copy(update={"public_benign": 9}), "other")
        assert cycles.get_manifest(connection, cycle.cycle_id) == first
        with pytest.raises(sa.exc.NoResultFound):
            cycles.get_manifest(connection, "unknown")


def test_progress_is_the_latest_only(database: Database) -> None:
    with database.write() as connection:
        cycle = opened(connection)
        assert progress.get(connection, cycle.cycle_id) is None
        progress.save(connection, cycle.cycle_id, "revise", 1, 9, {"round": 1})
        progress.save(connection, cycle.cycle_id, "train", 2, 6, {"epsilon": 1.5})
        shown = progress.get(connection, cycle.cycle_id)
    assert shown is not None
    assert (shown["stage"], shown["done"], shown["total"], shown["detail"]) == ("train", 2, 6, {"epsilon": 1.5})
