"""Golden examples: what is on the wire today must be read tomorrow. `models/examples/RECORD.case.json`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, ValidationError

from agents.routing.classify import RoutingRules, classify, validate
from agents.routing.enrich import Stamp, enrich
from agents.routing.identity import identify
from agents.routing.message import DecodedRecord, InboundMessage
from app.store import Database, approvals, cycles, leases, ledger, live_settings, outbox, registry
from app.topics import REGISTRY
from models.audit import AuditEntry
from models.cycle import CycleState, TrainingPlan, TriggerType
from models.event import Classification
from models.privacy import LedgerEntry
from models.schemas import RECORDS
from otel.subject import is_token

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "models" / "examples").glob("*.json"))
BY_NAME = {record.__name__: record for record in RECORDS}


def load(name: str) -> Any:
    return orjson.loads(next(path for path in EXAMPLES if path.stem == name).read_bytes())


def record_of(path: Path) -> type[BaseModel]:
    return BY_NAME[path.stem.partition(".")[0]]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_read_and_written_back_as_it_was(path: Path) -> None:
    record, text = record_of(path), path.read_bytes()
    read = record.model_validate_json(text)
    assert read.model_dump(mode="json", exclude_unset=True) == orjson.loads(text)
    assert record.model_validate_json(read.model_dump_json()) == read


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_required_field_is_missed(path: Path) -> None:
    """So that an example which validates says something."""
    record, document = record_of(path), orjson.loads(path.read_bytes())
    for name, field in record.model_fields.items():
        if field.is_required():
            with pytest.raises(ValidationError, match=name):
                record.model_validate({key: value for key, value in document.items() if key != name})


def test_every_record_has_an_example() -> None:
    assert {record_of(path) for path in EXAMPLES} == set(RECORDS)


def test_every_topic_of_records_has_an_example() -> None:
    named = {spec.value.rsplit(".", 1)[1] for spec in REGISTRY if spec.value.startswith("models.")}
    assert named <= {path.stem.partition(".")[0] for path in EXAMPLES}


def test_every_kind_of_event_has_an_example() -> None:
    events = [load(path.stem) for path in EXAMPLES if path.stem.startswith("RoutedEvent.")]
    assert {event["event_classification"] for event in events} == {kind.value for kind in Classification}


@pytest.mark.parametrize("case", [p.stem.partition(".")[2] for p in EXAMPLES if p.stem.startswith("RoutedEvent.")])
def test_a_routed_event_is_what_the_router_makes_of_its_event(case: str) -> None:
    event, routed = load(f"AuditEvent.{case}"), load(f"RoutedEvent.{case}")
    rules = RoutingRules(constitutional_hash=routed["constitutional_hash"])
    service = routed["routing_metadata"]["identity"]["service"]
    validate(event)
    record = DecodedRecord(InboundMessage("otel-audit-events", 0, 0, b""), 0, copy.deepcopy(event), service, True)
    identity = identify(event, service)
    stamp = Stamp.of(rules, 0.0)._replace(processed_at=routed["processing_timestamp"])
    out = enrich(record, classify(event, rules), identity, stamp)
    assert orjson.loads(out.value) == routed
    assert out.topic == routed["routing_metadata"]["topic"]


def test_subjects_in_examples_are_tokens() -> None:
    documents = [load(path.stem) for path in EXAMPLES]
    subjects = [value for document in documents for value in _values(document, {"subject_id", "subject_token"})]
    assert len(subjects) >= 4
    assert all(is_token(subject) for subject in subjects)


def _values(node: Any, names: set[str]) -> Iterator[Any]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name in names and value is not None:
                yield value
            yield from _values(value, names)
    elif isinstance(node, list):
        for value in node:
            yield from _values(value, names)


def test_audit_entries_are_as_the_store_writes_them(tmp_path: Path) -> None:
    """Each kind that the store queues, with the fields of its golden example."""
    hashed = {"constitutional_hash": "cdd01ef066bc6cf2"}
    entries = {entry["event_type"]: entry | hashed for entry in _queued(f"sqlite:///{tmp_path / 'test.db'}")}
    cycle_kinds = {"cycle_transition", "optimization_cycle", "approval", "privacy_ledger", "deployment"}
    assert set(entries) == cycle_kinds | {"routing_setting"}
    for kind, entry in entries.items():
        AuditEntry.model_validate(entry)
        assert set(load(f"AuditEntry.{kind}")) == set(entry), kind
    changed = "routing_setting"
    assert set(load(f"AuditEntry.{changed}")["context"]) == set(entries[changed]["context"])


def _queued(url: str) -> list[dict[str, Any]]:
    database = Database(url)
    database.migrate()
    with database.write() as connection:
        cycle = cycles.open_cycle(
            connection, model_id="m", domain="d", trigger_type=TriggerType.MANUAL, requested_by="alice", facts={}
        )
        assert cycle is not None
        plan = TrainingPlan.model_validate(load("TrainingPlan.first_cycle"))
        cycle = cycles.transition(connection, cycle, CycleState.PREPARING, plan=plan, plan_digest="0" * 64)
        approvals.decide(connection, cycle, reviewer="bob", approved=True, comment="")
        lease = leases.acquire(connection, ledger.domain_lease(load("LedgerEntry.one_step")["domain"]), "a", 60.0)
        assert lease is not None
        document = load("LedgerEntry.one_step") | {"cycle_id": cycle.cycle_id, "fence": lease.fence}
        ledger.reserve(connection, LedgerEntry.model_validate(document), lease)
        registry.deploy(connection, "m", None, "a test")
        live_settings.change(connection, "policy_evaluation.sample_rate", 0.5, changed_by="alice")
        cycles.transition(connection, cycle, CycleState.REJECTED)
        queued = [item.payload for item in outbox.pending(connection) if item.channel == outbox.AUDIT]
    database.close()
    return queued
