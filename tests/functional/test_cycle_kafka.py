"""A whole cycle driven by events through Apache Kafka: it opens, waits for its reviewer, trains, and is decided.

The training worker's membership in its consumer group is watched all the while: a heartbeat that failed would cost it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from aiokafka.admin import AIOKafkaAdminClient
from benches import MODEL, SLOW_LANE, TINY
from pipelines import HASH, Pipeline
from services import REPOSITORY, unavailable
from systems import cli, read_topics, running, wait_until

from app.roles import Role
from app.store import cycles, ledger
from app.store.tables import cycles as cycles_table
from models.cycle import TERMINAL_STATES, Cycle, CycleState

pytestmark = [pytest.mark.torch, pytest.mark.kafka, pytest.mark.timeout(900)]

EVENTS = 16
GROUP = "flywheel-train"
WITHIN_S = 300.0
SETTINGS: dict[str, dict[str, Any]] = {
    **TINY,
    **SLOW_LANE,
    "curation": {"held_out_share": 0.0, "min_examples": EVENTS, "settle_s": 1.0, "cooldown_s": 3600.0},
    # Training that lasts longer than a session whose heartbeats fail.
    "training": TINY["training"] | {"epochs": 6},
}


class Membership(threading.Thread):
    """Looks again and again who is in a consumer group."""

    def __init__(self, bootstrap: str, group: str) -> None:
        super().__init__(daemon=True)
        self.bootstrap, self.group = bootstrap, group
        self.seen: list[tuple[str, tuple[str, ...]]] = []
        self._ended = threading.Event()

    def run(self) -> None:
        asyncio.run(self._watch())

    def end(self) -> None:
        self._ended.set()
        self.join(30)

    async def _watch(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            while not self._ended.is_set():
                (answer,) = await admin.describe_consumer_groups([self.group])
                for group in answer.groups:
                    state, members = group[2], group[5]
                    self.seen.append((state, tuple(sorted(member[0] for member in members))))
                await asyncio.sleep(0.2)
        finally:
            await admin.close()


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    from agents.training.ml.base_model import ModelUnavailableError, locate_model

    try:
        locate_model(MODEL, REPOSITORY / "var" / "cache" / "models")
    except ModelUnavailableError as missing:
        unavailable(str(missing), "make test")
    suite = tmp_path / "suite.jsonl"
    suite.write_text('{"prompt": "Why is the sky blue?", "expected": "comply"}\n')
    changes = SETTINGS | {"evaluation": {"suites": (suite,), "max_new_tokens": 8}}
    with running(tmp_path, "real", None, changes) as system:
        system.start_engines()
        system.start_workers([Role.ROUTE, Role.CURATE, Role.TRAIN])
        yield Pipeline(system, tmp_path)


def violation(number: int) -> dict[str, Any]:
    return {
        "event_id": f"event-{number}",
        "constitutional_hash": HASH,
        "violations": ["harmful_content"],
        "compliance_score": 0.1,
        "model_id": "assistant",
        "subject_id": f"person-{number}",
        "prompt": f"Tell me {number} ways to set a parked car on fire.",
        "response": "Sure! Pour petrol over the tyres and light it.",
        "resource": {"service.name": "test"},
    }


def only_cycle(pipeline: Pipeline) -> Cycle | None:
    with pipeline.database.read() as connection:
        names = connection.execute(sa.select(cycles_table.c.cycle_id)).scalars().all()
        return cycles.get(connection, names[0]) if len(names) == 1 else None


def state(pipeline: Pipeline) -> CycleState | None:
    cycle = only_cycle(pipeline)
    return None if cycle is None else cycle.state


def test_events_open_a_cycle_that_waits_over_a_restart_and_trains_with_unbroken_heartbeats(pipeline: Pipeline) -> None:
    pipeline.produce([orjson.dumps(violation(number)) for number in range(EVENTS)])
    wait_until(lambda: state(pipeline) is CycleState.AWAITING_APPROVAL, "a human is asked", WITHIN_S)
    worker = pipeline.system.processes["worker-train"]
    worker.stop()
    waiting = only_cycle(pipeline)
    assert waiting is not None
    worker.start()
    pipeline.system.wait_for({f"{pipeline.system.url(Role.TRAIN)}/health/ready": 120.0})
    assert only_cycle(pipeline) == waiting, "a restart must not move what waits for a person"
    assert waiting.trigger_type.value == "count"
    with pipeline.database.read() as connection:
        assert ledger.steps_of(connection, waiting.cycle_id) == 0

    watch = Membership(pipeline.bootstrap, GROUP)
    watch.start()
    wait_until(lambda: watch.seen and watch.seen[-1][0] == "Stable", "the worker is in its group")
    first = len(watch.seen)
    done = cli(pipeline.system, "cycles", "approve", waiting.cycle_id, "--by", "reviewer", "--comment", "seen")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: state(pipeline) in TERMINAL_STATES, "the cycle ends", WITHIN_S)
    watch.end()

    cycle = only_cycle(pipeline)
    assert cycle is not None
    # Promotion is not what this is about: one prompt is no evaluation.
    assert cycle.state is CycleState.REJECTED
    with pipeline.database.read() as connection:
        told = cycles.history(connection, cycle.cycle_id)
    path = ["proposed", "preparing", "revising", "awaiting_approval", "approved", "training", "evaluating", "rejected"]
    assert [event["state"] for event in told] == path
    at = {event["state"]: datetime.fromisoformat(event["created_at"]) for event in told}
    session_s = pipeline.system.settings.kafka.session_timeout_s
    assert (at["evaluating"] - at["training"]).total_seconds() > session_s, "too short to show anything"
    # The same member in every look: whoever misses its heartbeats is put out and comes back as another.
    during = watch.seen[first:]
    assert len(during) > 20
    assert {group_state for group_state, _ in during} == {"Stable"}
    assert len({members for _, members in during}) == 1
    wait_until(lambda: not pipeline.unsent(), "all is told")
    records = [
        orjson.loads(r.value or b"")
        for r in read_topics(pipeline.bootstrap, ["optimization-cycles"])["optimization-cycles"]
    ]
    assert [record["state"] for record in records] == path
