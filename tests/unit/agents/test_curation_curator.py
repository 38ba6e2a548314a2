"""The curator against a plain model of its rules: redeliveries, any order, any batches, hostile records."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from curation_model import PlainModel, key_of, stored
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from registry_parts import trained

from agents.curation import signature
from agents.curation.curator import CuratedRecord, CurationRules, Curator
from agents.curation.examples import to_example
from agents.curation.triggers import AgeTrigger, CountTrigger, DriftTrigger, Triggers
from app.store import Database, adherence, cycles, examples, outbox, switches, watch
from app.store.database import utc_now
from app.store.tables import examples as examples_table
from app.store.tables import pending_feedback
from models.cycle import TERMINAL_STATES, CycleState, TriggerType
from models.example import ExampleStatus, Lineage


def rules(min_examples: int, settle_s: float = 0.0, cooldown_s: float = 0.0, **others: Any) -> CurationRules:
    triggers = Triggers(CountTrigger(min_examples, settle_s), cooldown_s=cooldown_s)
    return CurationRules(**({"triggers": triggers} | others))


NEVER = rules(10_000)


def violation(event_id: str | None, service: str = "svc", **changes: Any) -> dict[str, Any]:
    identity = {"service": service, "id": str(event_id), "fingerprint": "f"}
    return {
        "event_id": event_id,
        "event_classification": "constitutional_violation",
        "model_id": "m",
        "prompt": "question",
        "response": "answer",
        "violations": ["harm"],
        "routing_metadata": {"identity": identity},
    } | changes


def review(name: str, target: str, verdict: str, service: str = "svc") -> dict[str, Any]:
    changes = {"event_classification": "human_feedback", "target_event_id": target, "verdict": verdict}
    return violation(name, service, source="human_review", **changes)


def records(events: Sequence[dict[str, Any]]) -> list[CuratedRecord]:
    return [CuratedRecord(event, Lineage(topic="t", partition=0, offset=n)) for n, event in enumerate(events)]


def empty(database: Database) -> None:
    with database.write() as connection:
        connection.execute(sa.delete(pending_feedback))
        connection.execute(sa.delete(examples_table))


EVENT_IDS = st.sampled_from(["e1", "e2", "e3", "e4"])
EVENTS = st.one_of(
    st.builds(
        violation,
        EVENT_IDS,
        st.sampled_from(["svc", "svc", "other"]),  # two services may use one event id
        event_classification=st.sampled_from(["constitutional_violation", "model_optimization_trigger"]),
    ),
    st.builds(review, st.sampled_from([f"r{n}" for n in range(6)]), EVENT_IDS, st.sampled_from(["approve", "reject"])),
)
BATCHES = st.lists(st.lists(EVENTS, max_size=6), max_size=6)


@limits(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=BATCHES)
def test_any_batches_give_what_the_rules_give(database: Database, batches: list[list[dict[str, Any]]]) -> None:
    empty(database)
    curator, model = Curator(database, NEVER), PlainModel()
    for batch in batches:
        outcome = curator.store(records(batch))
        model.store(batch)
        assert stored(database) == model.state()
        taken = outcome["examples"] + outcome["examples_known"]
        assert taken == sum(event["event_classification"] != "human_feedback" for event in batch)
    assert curator.counts["examples"] == len(model.examples)
    assert curator.counts["feedback"] == len(model.reviews)
    assert curator.counts["feedback_applied"] == len(model.applied)


@limits(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_redelivery_and_order_do_not_matter(database: Database, data: st.DataObject) -> None:
    """Event ids of one service: whatever is delivered twice, late, or in other batches, the end is the same."""
    events = [violation(f"e{n}") for n in range(4)]
    events += [review(f"r{n}", f"e{n % 4}", "approve" if n == 3 else "reject") for n in range(6)]
    expected = PlainModel()
    expected.store(events)
    again = data.draw(st.lists(st.sampled_from(events), max_size=10))
    order = data.draw(st.permutations(events + again))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=5)))
    empty(database)
    curator = Curator(database, NEVER)
    for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True):
        curator.store(records(order[start:end]))
    assert stored(database) == expected.state()


def test_more_reviews_than_one_round_applies(database: Database) -> None:
    curator = Curator(database, NEVER)
    curator.store(records([review(f"r{number}", "e1", "reject") for number in range(1100)]))
    outcome = curator.store(records([violation("e1")]))
    assert outcome["feedback_applied"] == 1100
    assert stored(database) == {key_of(violation("e1")): ("e1", 10 + 20 * 1100, "new")}


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"prompt": None}, "no_prompt"),
        ({"model_id": None}, "no_model"),
        ({"model_id": "m" * 5000}, "bad_name"),
        ({"event_classification": "human_feedback"}, "no_target"),
        ({"event_classification": "human_feedback", "target_event_id": "e1"}, "no_verdict"),
        ({"event_classification": "nonsense"}, "invalid"),
        ({"event_classification": ["x"]}, "invalid"),
        ({"compliance_score": "high"}, "invalid"),
        ({"routing_metadata": {"identity": {"service": 1}}}, "invalid"),
        ({"routing_metadata": {}}, "invalid"),
        ({"prompt": "a\x00b", "event_id": "x\x00y"}, "examples"),
        ({"event_id": secrets.token_hex(50_000)}, "examples"),
        ({"workload_id": "w" * 100_000, "violations": ["v" * 100_000]}, "examples"),
        ({"event_classification": "human_feedback", "target_event_id": secrets.token_hex(50_000), "verdict": "reject"},
         "feedback"),
    ],
)  # fmt: skip
def test_no_record_stops_those_behind_it(database: Database, changes: dict[str, Any], outcome: str) -> None:
    """The router writes these topics, but so may others; what the store cannot take must not come back for ever."""
    counts = Curator(database, NEVER).store(records([violation("e1") | changes, violation("good")]))
    assert counts[outcome] >= 1
    assert counts["examples"] == (2 if outcome == "examples" else 1)
    assert key_of(violation("good")) in stored(database)


def test_an_event_without_its_classification_is_counted(database: Database) -> None:
    bare = violation("e1")
    del bare["event_classification"]
    assert Curator(database, NEVER).store(records([bare])) == {"invalid": 1} | dict.fromkeys(
        ("examples", "examples_known", "feedback", "feedback_applied", "evaluations", "evaluations_of_champions"), 0
    )


def test_a_batch_is_one_transaction(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    curator = Curator(database, NEVER)

    def fail(*_: Any) -> None:
        raise sa.exc.OperationalError("insert", None, Exception("gone"))

    with monkeypatch.context() as broken:
        broken.setattr("app.store.examples.add_feedback", fail)
        with pytest.raises(sa.exc.OperationalError):
            curator.store(records([violation("e1")]))
    assert stored(database) == {}
    assert curator.counts == {}
    curator.store(records([violation("e1")]))
    assert len(stored(database)) == 1


@pytest.mark.postgres
def test_feedback_stored_beside_its_event_is_not_forgotten(postgres_url: str) -> None:
    """Two workers, two transactions: neither sees what the other writes."""
    database = Database(postgres_url)
    database.migrate()
    curator = Curator(database, NEVER)
    with database.write() as connection:
        examples.insert(connection, [to_example(violation("e1"), Lineage(topic="t", partition=0, offset=0), utc_now())])
        assert curator.store(records([review("r1", "e1", "reject")]))["feedback_applied"] == 0
    curator.open_due_cycles()
    assert stored(database) == {key_of(violation("e1")): ("e1", 30, "new")}
    assert curator.counts["feedback_applied"] == 1
    database.close()


def test_reviews_that_two_workers_apply_at_once_all_count(database: Database) -> None:
    workers, each = 4, 10
    curator = Curator(database, NEVER)
    curator.store(records([violation("e1")]))
    start = threading.Barrier(workers)

    def tell(worker: int) -> None:
        start.wait(10)
        for number in range(each):
            curator.store(records([review(f"r{worker}-{number}", "e1", "reject")]))

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(tell, worker) for worker in range(workers)]:
            done.result(60)
    curator.open_due_cycles()
    assert stored(database) == {key_of(violation("e1")): ("e1", 10 + 20 * workers * each, "new")}


def test_a_cycle_opens_once_enough_examples_wait(database: Database) -> None:
    curator = Curator(database, rules(3, cooldown_s=3600.0))
    curator.store(records([violation(f"e{n}") for n in range(2)]))
    curator.store(records([violation(f"h{n}", domain="health") for n in range(2)]))
    assert curator.open_due_cycles() == []
    curator.store(records([violation("e2"), violation("e2")]))
    [cycle] = curator.open_due_cycles()
    assert (cycle.model_id, cycle.domain, cycle.trigger_type) == ("m", "default", TriggerType.COUNT)
    assert cycle.requested_by == "curation"
    assert cycle.facts["waiting_units"] == 3
    assert curator.open_due_cycles() == []  # it is open
    with database.write() as connection:
        cycles.transition(connection, cycle, CycleState.CANCELLED)
    assert curator.open_due_cycles() == []  # the cool-down


def test_what_waits_while_a_cycle_is_open_or_has_just_ended_is_not_counted(database: Database) -> None:
    """Found by the soak: counting 800,000 waiting examples each second, as the one writer, curation fell behind."""
    curator = Curator(database, rules(3, cooldown_s=3600.0))
    curator.store(records([violation(f"e{n}") for n in range(4)]))
    [cycle] = curator.open_due_cycles()
    counts: list[str] = []

    def heard(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        counts.extend([statement] if "count(" in statement.lower() and "FROM examples" in statement else [])

    sa.event.listen(database.engine, "before_cursor_execute", heard)
    assert curator.open_due_cycles() == []
    with database.write() as connection:
        cycles.transition(connection, cycle, CycleState.CANCELLED)
    assert curator.open_due_cycles() == []
    assert not counts
    curator.store(records([violation(f"f{n}", model_id="other") for n in range(2)]))
    assert curator.open_due_cycles() == []
    assert len(counts) == 1


def test_a_cycle_that_opens_and_ends_while_examples_are_counted_is_followed_by_no_other(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the chaos suite: a model had two cycles within six seconds, and an hour's cool-down."""
    curator = Curator(database, rules(3, cooldown_s=3600.0))
    curator.store(records([violation(f"e{n}") for n in range(4)]))
    count = examples.waiting_units
    rival = Curator(database, curator.rules)

    def slowly(connection: Any, model_id: str) -> Any:
        monkeypatch.setattr(examples, "waiting_units", count)
        [cycle] = rival.open_due_cycles()
        with database.write() as other:
            cycles.transition(other, cycle, CycleState.CANCELLED)
        return count(connection, model_id)

    monkeypatch.setattr(examples, "waiting_units", slowly)
    assert curator.open_due_cycles() == []
    with database.read() as connection:
        assert len(cycles.list_cycles(connection)) == 1


def test_a_cycle_that_ends_between_two_questions_is_heard_of(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the chaos suite as well: each statement of PostgreSQL sees what was committed before it."""
    database = Database(postgres_url)
    database.migrate()
    curator = Curator(database, rules(3, cooldown_s=3600.0))
    curator.store(records([violation(f"e{n}") for n in range(4)]))
    [cycle] = curator.open_due_cycles()
    questions = {name: getattr(cycles, name) for name in ("has_open", "last_finished")}

    def asked(name: str) -> Any:
        def ask(connection: Any, model_id: str) -> Any:
            answer = questions[name](connection, model_id)
            with database.write() as other:
                found = cycles.get(other, cycle.cycle_id)
                if found is not None and found.state not in TERMINAL_STATES:
                    cycles.transition(other, found, CycleState.CANCELLED)
            return answer

        return ask

    for name in questions:
        monkeypatch.setattr(cycles, name, asked(name))
    with database.read() as connection:
        assert list(curator._due(connection)) == []
    database.close()


def test_a_burst_is_awaited(database: Database) -> None:
    curator = Curator(database, rules(2, settle_s=0.4))
    curator.store(records([violation("e1"), violation("e2")]))
    stored_at = time.monotonic()
    while not (opened := curator.open_due_cycles()):
        assert time.monotonic() < stored_at + 20
        time.sleep(0.02)
    assert time.monotonic() - stored_at >= 0.4
    assert len(opened) == 1


def test_curators_side_by_side_open_one_cycle(database: Database) -> None:
    workers = 4
    trigger = rules(2)
    Curator(database, NEVER).store(records([violation(f"e{n}", model_id=f"m{n % 3}") for n in range(9)]))
    start = threading.Barrier(workers)

    def check(_: int) -> list[str]:
        curator = Curator(database, trigger)
        start.wait(10)
        return [cycle.model_id for cycle in curator.open_due_cycles()]

    with ThreadPoolExecutor(workers) as pool:
        opened = [model for models in pool.map(check, range(workers), timeout=60) for model in models]
    assert sorted(opened) == ["m0", "m1", "m2"]


def evaluation(number: int, score: float, rate: float = 1.0, **changes: Any) -> dict[str, Any]:
    event = violation(f"p{number}", event_classification="policy_evaluation", event_type="policy_evaluation")
    event |= {"compliance_score": score, "violations": None}
    event["routing_metadata"] |= {"sample_rate": rate}
    return event | changes


def delivered(events: Sequence[dict[str, Any]], topic: str = "policy-evaluations") -> list[CuratedRecord]:
    return [CuratedRecord(event, Lineage(topic=topic, partition=0, offset=n)) for n, event in enumerate(events)]


def test_a_subjects_examples_are_one_unit(database: Database) -> None:
    curator = Curator(database, rules(3))
    curator.store(records([violation(f"e{n}", subject_id="sub_a") for n in range(9)]))
    curator.store(records([violation("e9")]))
    assert curator.open_due_cycles() == []
    curator.store(records([violation("e10", subject_id="sub_b")]))
    [cycle] = curator.open_due_cycles()
    assert cycle.facts["waiting_units"] == 3


def test_the_oldest_example_opens_a_cycle_when_it_has_waited_long(database: Database) -> None:
    patient = Triggers(CountTrigger(100, 0.0), AgeTrigger(2, 0.3))
    curator = Curator(database, rules(1, triggers=patient))
    curator.store(records([violation("e1")]))
    started = time.monotonic()
    while time.monotonic() < started + 0.4:
        assert curator.open_due_cycles() == []  # too few, however old
        time.sleep(0.05)
    curator.store(records([violation("e2")]))
    [cycle] = curator.open_due_cycles()
    assert cycle.trigger_type is TriggerType.AGE
    assert cycle.facts["oldest_s"] >= 0.3


def test_falling_adherence_opens_a_cycle(database: Database) -> None:
    watchful = Triggers(CountTrigger(100, 0.0), drift=DriftTrigger(2, 0.95, 30))
    curator = Curator(database, rules(1, triggers=watchful, half_life=50.0))
    curator.store(records([violation("e1"), violation("e2")]))
    good = [evaluation(n, 0.99, 0.2) for n in range(40)]
    assert curator.store(delivered(good))["evaluations"] == 40
    assert curator.open_due_cycles() == []
    bad = [*good, *(evaluation(40 + n, 0.5, 0.2) for n in range(10))]
    # A redelivery of all of them counts the new ones alone.
    assert curator.store(delivered(bad))["evaluations"] == 10
    [cycle] = curator.open_due_cycles()
    assert cycle.trigger_type is TriggerType.DRIFT
    # Ten that stand for fifty, over two hundred before them, at a half-life of fifty.
    assert cycle.facts["adherence"] == pytest.approx(0.5 * (1 - 0.5**4) / (1 - 0.5**5), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "adherent"),
    [
        ({}, True),
        ({"compliance_score": 0.949}, False),
        ({"violations": ["harm"], "event_classification": "constitutional_violation"}, False),
        ({"event_type": "inference"}, None),  # of others the router keeps failures alone
        ({"compliance_score": None}, None),
        ({"compliance_score": True}, None),
        ({"model_id": " "}, None),
        ({"model_id": "m" * 500}, None),
        ({"routing_metadata": {"identity": {"service": "s", "id": "i", "fingerprint": "f"}, "sample_rate": 0}}, None),
    ],
)
def test_what_counts_as_adherent(database: Database, changes: dict[str, Any], adherent: bool | None) -> None:
    Curator(database, NEVER).store(delivered([evaluation(1, 0.95) | changes]))
    with database.read() as connection:
        found = {key: estimate.mean for key, estimate in adherence.read(connection).items()}
    assert found == ({} if adherent is None else {("m", "default"): float(adherent)})


def test_nothing_opens_while_all_is_halted(database: Database) -> None:
    curator = Curator(database, rules(1))
    curator.store(records([violation("e1")]))
    with database.write() as connection:
        switches.halt(connection, changed_by="ann", comment="a leak")
    assert curator.open_due_cycles() == []
    with database.write() as connection:
        switches.resume(connection, changed_by="ann")
    assert curator.open_due_cycles() == []  # the audit engine does not know yet
    with database.write() as connection:
        outbox.mark_delivered(connection, [item.seq for item in outbox.pending(connection)])
    assert len(curator.open_due_cycles()) == 1


def test_a_signed_correction_is_a_target_and_a_forged_one_is_not(database: Database) -> None:
    key = b"k" * 32
    curator = Curator(database, rules(10, feedback_key=key))
    curator.store(records([violation("e1"), violation("e2"), violation("e3")]))
    signed, forged, changed = (
        review(f"r{n}", f"e{n}", "correct") | {"corrected_response": f"better {n}"} for n in (1, 2, 3)
    )
    signed[signature.FIELD] = signature.sign(key, signed)
    forged[signature.FIELD] = signature.sign(b"x" * 32, forged)
    changed[signature.FIELD] = signature.sign(key, changed)
    changed["corrected_response"] = "worse"
    curator.store(records([signed, forged, changed]))
    with database.read() as connection:
        found = {one.event_id: one for one in examples.search(connection, examples.Filter())}
    assert (found["e1"].corrected_response, found["e1"].correction_signed) == ("better 1", True)
    assert all(found[name].corrected_response is None and not found[name].correction_signed for name in ("e2", "e3"))
    assert {one.priority for one in found.values()} == {30}


def test_text_beyond_its_retention_is_forgotten(database: Database) -> None:
    curator = Curator(database, rules(10, text_retention_s=0.2))
    curator.store(records([violation("e1")]))
    assert curator.forget_old_text() == 0
    time.sleep(0.25)
    curator.store(records([violation("e2")]))
    assert curator.forget_old_text() == 1
    with database.read() as connection:
        found = {one.event_id: one for one in examples.search(connection, examples.Filter())}
    assert (found["e1"].status, found["e1"].prompt) == (ExampleStatus.FORGOTTEN, "")
    assert (found["e2"].status, found["e2"].prompt) == (ExampleStatus.NEW, "question")
    # Its event, told again, does not bring the text back.
    curator.store(records([violation("e1")]))
    with database.read() as connection:
        assert examples.get(connection, [key_of(violation("e1"))])[key_of(violation("e1"))].prompt == ""


def test_a_champions_evaluations_are_counted_with_their_positions(database: Database, tmp_path: Path) -> None:
    """By its version, or since it was deployed; history that is routed anew, in whatever form its time is, does not."""
    with database.write() as connection:
        champion = trained(connection, tmp_path, state=CycleState.PROMOTED)
    now = time.time() + 60
    stamp = datetime.fromtimestamp(now, UTC).isoformat().replace("+00:00", "Z")
    told = [
        {"model_version": champion},
        {"timestamp": stamp},
        {"timestamp": now},
        {"timestamp": "yesterday"},
        {"timestamp": datetime.fromtimestamp(now, timezone(timedelta(hours=-9))).isoformat()},
        {},
        {"timestamp": 1_700_000_000},
        {"timestamp": "2024-01-01T00:00:00Z"},
        {"model_version": "another"},
        {"processing_timestamp": "2024-01-01T00:00:00.000000Z"},
        {"processing_timestamp": None},
    ]
    events = [evaluation(n, 0.1, 0.2, **({"processing_timestamp": stamp} | one)) for n, one in enumerate(told)]
    curator = Curator(database, NEVER)
    for _ in range(2):
        curator.store(delivered(events))
    assert curator.counts["evaluations"] == len(told)
    assert curator.counts["evaluations_of_champions"] == 6
    with database.read() as connection:
        (seen,) = watch.champions(connection)
    assert (seen.version_id, seen.evaluations, seen.mean) == (champion, 6, 0.0)
    assert seen.weight == pytest.approx(30, rel=0.05), "each stands for five"
