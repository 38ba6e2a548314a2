"""Cycles while faults fall: what the training worker is given to do, and that each step is told exactly once.

A model's cycle comes to wait for a reviewer (may its text go to a teacher?), who says no: the gate, the audit engine
and the relay work, and nothing is trained. A probe is a cycle without examples, which ends by itself. At each fault
one of either is opened, and who waits is answered, so the training worker has its hands full.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from fault_stream import read_all
from systems import entries, wait_until

from app.embedded.system import System
from app.store import Database, approvals, cycles, examples
from app.store import tables as store
from app.store.database import utc_now
from models.cycle import TERMINAL_STATES, CycleState, TriggerType
from models.event import Classification, Identity
from models.example import Example, Lineage
from policies.gate.bundle import REGO_ROOT

TEACHER = "http://teacher.invalid/v1"
CYCLES_TOPIC = "optimization-cycles"
PROBE, ASKED = "probe-", "asked-"
_ASKED = ["proposed", "preparing", "revising", "awaiting_approval", "rejected"]
_PROBED = ["proposed", "preparing", "rejected"]


def settings(folder: Path) -> dict[str, dict[str, Any]]:
    """Those under which a cycle asks a reviewer before anything of it is revised."""
    policies = folder / "rego"
    shutil.copytree(REGO_ROOT, policies)
    inventory = policies / "data" / "inventory.json"
    inventory.write_text(json.dumps(json.loads(inventory.read_text()) | {"teacher_endpoints": [TEACHER]}))
    return {
        "gate": {"policies": policies},
        "teacher": {"url": TEACHER, "model": "large", "send_event_text": True},
        # A lease outlasts a restart of whoever holds it, and not a freeze.
        "training": {"poll_s": 0.3, "lease_s": 6.0},
    }


@dataclass
class Reviewer:
    """Opens cycles, says no to what waits, and knows what must have been told."""

    database: Database
    rounds: int = 0

    def give_work(self) -> None:
        """Say no to every cycle that waits, and open a probe and a cycle of one example."""
        self.decide()
        with self.database.write() as connection:
            examples.insert(connection, [_example(f"{ASKED}{self.rounds}")])
            for name in (PROBE, ASKED):
                opened = cycles.open_cycle(
                    connection,
                    model_id=f"{name}{self.rounds}",
                    domain="default",
                    trigger_type=TriggerType.MANUAL,
                    requested_by="requester",
                    facts={},
                )
                assert opened is not None
            self.rounds += 1

    @property
    def asked(self) -> set[str]:
        """The events of the examples that it has put in the store."""
        return {f"{ASKED}{number}" for number in range(self.rounds)}

    def decide(self) -> None:
        """Say no to every cycle that waits and has not been answered."""
        with self.database.write() as connection:
            for cycle in cycles.list_cycles(connection, open_only=True):
                if cycle.state is CycleState.AWAITING_APPROVAL and approvals.latest(connection, cycle.cycle_id) is None:
                    approvals.decide(connection, cycle, reviewer="reviewer", approved=False, comment="no")

    def wait_settled(self, within_s: float) -> None:
        """Wait until every cycle has ended or waits for an answer, and everything is told."""
        wait_until(self._settled, "cycles go on, and are told of", within_s)

    def end_all(self, within_s: float) -> None:
        """Say no until no cycle is open."""

        def ended() -> bool:
            self.decide()
            with self.database.read() as connection:
                return not cycles.list_cycles(connection, open_only=True)

        wait_until(ended, "all cycles end", within_s)
        self.wait_settled(within_s)

    def _settled(self) -> bool:
        with self.database.read() as connection:
            for cycle in cycles.list_cycles(connection, open_only=True):
                if cycle.state is not CycleState.AWAITING_APPROVAL:
                    return False
                if approvals.latest(connection, cycle.cycle_id) is not None:
                    return False
            query = sa.select(sa.func.count()).where(store.outbox.c.delivered_at.is_(None))
            return int(connection.execute(query).scalar_one()) == 0


def _example(name: str) -> Example:
    return Example(
        example_id=name,
        identity=Identity(service="test", id=name, fingerprint="0" * 32),
        event_id=name,
        classification=Classification.CONSTITUTIONAL_VIOLATION,
        lineage=Lineage(topic="constitutional-violations", partition=0, offset=0),
        domain="default",
        model_id=name,
        subject_token=None,
        workload_id=None,
        violation_type="harm",
        compliance_score=0.1,
        prompt=f"question of {name}",
        response=f"answer to {name}",
        created_at=utc_now(),
    )


def check(system: System, database: Database, models: set[str], rounds: int, bootstrap: str) -> int:
    """One cycle for each model, and one audit entry of each step; how many cycles there were.

    `rounds`: how often cycles were opened by hand.
    """
    with database.read() as connection:
        found = cycles.list_cycles(connection, limit=1000)
        steps = {cycle.cycle_id: cycles.history(connection, cycle.cycle_id) for cycle in found}
        words = [f"approval-{row.approval_id}" for row in connection.execute(sa.select(store.approvals))]
        refused = connection.execute(sa.select(store.outbox).where(store.outbox.c.refusal.is_not(None))).all()
    assert not refused, f"the relay gave up {refused}"
    by_hand = {f"{name}{number}" for number in range(rounds) for name in (PROBE, ASKED)}
    counted = Counter(cycle.model_id for cycle in found)
    assert max(counted.values()) == 1, f"a model has two cycles: {counted}"
    assert counted.keys() == models | by_hand, f"cycles differ: {counted.keys() ^ (models | by_hand)}"
    for cycle in found:
        assert cycle.state in TERMINAL_STATES
        states = [step["state"] for step in steps[cycle.cycle_id]]
        assert states == (_PROBED if cycle.model_id.startswith(PROBE) else _ASKED), f"{cycle.model_id}: {states}"
    told = [entry["id"] for kind in ("cycle_transition", "optimization_cycle") for entry in entries(system, kind)]
    every = {f"cycle-{cycle.cycle_id}-{version}" for cycle in found for version in range(1, cycle.version + 1)}
    assert Counter(told) == Counter(every), "entries of cycles differ"
    assert Counter(entry["id"] for entry in entries(system, "approval")) == Counter(words), "entries of words differ"
    _check_decided(system, steps)
    _check_records(bootstrap, every)
    return len(found)


def _check_decided(system: System, steps: dict[str, list[dict[str, Any]]]) -> None:
    """No cycle waits by a decision that the audit engine has not got."""
    details = [step["detail"] for told in steps.values() for step in told]
    taken = {detail["decision_id"] for detail in details if "decision_id" in detail}
    logged = {entry["body"]["context"]["decision"]["decision_id"] for entry in entries(system, "gate_decision")}
    assert taken, "no decision was taken: nothing was tested"
    assert taken <= logged, f"decisions took effect unlogged: {taken - logged}"


def _check_records(bootstrap: str, every: set[str]) -> None:
    """Kafka tells each step, a cycle's in their order; a record may come again after a fault."""
    last: dict[str, int] = {}
    for message in read_all(bootstrap, [CYCLES_TOPIC])[CYCLES_TOPIC]:
        record = orjson.loads(message.value())
        cycle_id, version = record["cycle_id"], record["version"]
        assert version <= last.get(cycle_id, 0) + 1, f"{cycle_id}: version {version} came too early"
        last[cycle_id] = max(last.get(cycle_id, 0), version)
    told = {f"cycle-{cycle_id}-{number}" for cycle_id, version in last.items() for number in range(1, version + 1)}
    assert told == every, f"records of cycles differ: {told ^ every}"
