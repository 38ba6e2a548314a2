"""Twenty thousand routed events through real Kafka: the examples are those that a plain model of the rules has."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from curation_model import Event, PlainModel, stored
from systems import lag, running, wait_until

from app.embedded.system import WORKER_READY_S, System
from app.roles import Role
from app.store import Database, adherence

TOPIC_OF = {
    "constitutional_violation": "constitutional-violations",
    "model_optimization_trigger": "model-optimization-triggers",
    "human_feedback": "human-feedback-loops",
    "policy_evaluation": "policy-evaluations",
}
KINDS = ("constitutional_violation",) * 5 + ("model_optimization_trigger",) * 2 + ("human_feedback",) * 2


def events(count: int, seed: int) -> list[Event]:
    """Events of all kinds, reviews before and behind their events, and every tenth event told again later."""
    rng = random.Random(seed)
    made = [_event(number, count, rng) for number in range(count)]
    again = [made[rng.randrange(number + 1)] for number in range(0, count, 10)]
    for number, event in enumerate(again):
        made.insert(min(len(made), (number + 1) * 11 + rng.randrange(count // 7)), event)
    return made


def _event(number: int, count: int, rng: random.Random) -> Event:
    kind = KINDS[number % len(KINDS)] if number % 10 else "policy_evaluation"
    identity = {"service": "svc", "id": f"e{number}", "fingerprint": "f"}
    event: Event = {
        "event_id": f"e{number}",
        "event_classification": kind,
        "model_id": f"model-{number % 3}",
        "prompt": f"question {number}",
        "response": f"answer {number}",
        "subject_id": f"sub_{rng.randrange(3000):032x}",
        "routing_metadata": {"identity": identity, "sample_rate": 1.0},
    }
    if kind == "constitutional_violation":
        event["violations"] = [rng.choice(("harmful_content", "bias_detected"))]
    elif kind == "human_feedback":
        verdict = rng.choice(("approve", "reject", "reject", "correct"))
        event |= {"source": "human_review", "verdict": verdict, "target_event_id": f"e{rng.randrange(count)}"}
    elif kind == "policy_evaluation":
        event |= {"event_type": "policy_evaluation", "compliance_score": 0.99 if number % 40 else 0.5}
    return event


def produce(bootstrap: str, told: Sequence[Event]) -> None:
    """Send events as the router does: keyed by their identity, to the topic of their class."""

    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=20) as producer:
            waiting = [
                await producer.send(
                    TOPIC_OF[event["event_classification"]], orjson.dumps(event), key=event["event_id"].encode()
                )
                for event in told
            ]
            await asyncio.gather(*waiting)

    asyncio.run(send())


def restart(system: System) -> None:
    system.processes["worker-curate"].start()
    system.wait_for({f"{system.url(Role.CURATE)}/health/ready": WORKER_READY_S})


@pytest.mark.kafka
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("store", "count"), [("sqlite", 20_000), pytest.param("postgresql", 6_000, marks=pytest.mark.postgres)]
)
def test_the_examples_are_those_of_the_rules(
    request: pytest.FixtureRequest, tmp_path: Path, store: str, count: int
) -> None:
    url = request.getfixturevalue("postgres_url") if store == "postgresql" else None
    changes: dict[str, dict[str, Any]] = {"curation": {"min_examples": 10**9, "drift_half_life": 1e9}}
    told = events(count, seed=7)
    expected = PlainModel()
    expected.store(told)
    with running(tmp_path, "real", url, changes) as system:
        system.start_workers([Role.CURATE])
        bootstrap = system.stack.broker.bootstrap
        database = Database(system.settings.database.url)
        third = len(told) // 3
        produce(bootstrap, told[:third])
        wait_until(lambda: len(stored(database)) > count // 20, "curation is under way")
        system.processes["worker-curate"].kill()
        produce(bootstrap, told[third : 2 * third])
        restart(system)
        wait_until(lambda: len(stored(database)) > count // 3, "the new worker goes on")
        system.processes["worker-curate"].stop()
        produce(bootstrap, told[2 * third :])
        restart(system)
        wait_until(lambda: lag(bootstrap, "flywheel-curate", TOPIC_OF.values()) == 0, "all is stored")
        # Reviews stored beside their events by turns are applied by the next look.
        wait_until(lambda: stored(database) == expected.state(), "the examples are those of the model")
        with database.read() as connection:
            found = adherence.read(connection)
        evaluations = [event for event in told if event["event_classification"] == "policy_evaluation"]
        assert sum(one.evaluations for one in found.values()) == len(evaluations)
        for (model, _), one in found.items():
            mine = [event["compliance_score"] > 0.9 for event in evaluations if event["model_id"] == model]
            assert one.evaluations == len(mine), f"of {model}, evaluations were lost or counted twice"
            assert one.mean == pytest.approx(sum(mine) / len(mine), abs=1e-4)
        database.close()
