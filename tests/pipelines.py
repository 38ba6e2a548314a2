"""The routing and curation pipeline as tests drive it: ways in, ways to look, and events whose fate is known."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from aiokafka import AIOKafkaProducer
from systems import Record, cli, lag, read_topics, stats, wait_until

from app.embedded.system import System
from app.emitter import LogEmitter
from app.roles import Role
from app.store import Database
from app.store.tables import cycles, examples, outbox

INPUT = "otel-audit-events"
CURATED = ("constitutional-violations", "model-optimization-triggers", "human-feedback-loops")
HASH = "cdd01ef066bc6cf2"
OUTCOMES = ("routed", "filtered", "duplicate", "sampled_out", "dead_lettered")
CARD, ADDRESS, PHONE = "4539 1488 0343 6467", "198.51.100.77", "+49 30 12345678"

SETTINGS: dict[str, dict[str, Any]] = {
    # Of 60 tens and their reviews wait 90 units of `alpha`: 60 persons, and 30 harmful events of nobody.
    "curation": {"min_examples": 84, "settle_s": 2.0, "cooldown_s": 3600.0},
}

Event = dict[str, Any]


@dataclass
class Traffic:
    """What one way in sends, in tens of ten kinds, and what must become of it."""

    way: str
    tens: int
    feedback: list[Event] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    outcome: Counter[str] = field(default_factory=Counter)
    examples: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    """(event id, answer) -> (status, priority) of the examples that must be in the store."""

    def __post_init__(self) -> None:
        for ten in range(self.tens):
            self._add_ten(ten)

    def planted(self) -> list[bytes]:
        """Personal data that must be found nowhere behind the router."""
        people = [f"person{self.way}{ten}" for ten in range(self.tens)]
        return [name.encode() for name in people] + [CARD.encode(), ADDRESS.encode(), PHONE.encode()]

    def _add_ten(self, ten: int) -> None:
        name = f"{self.way}-{ten}"
        mail = f"person{self.way}{ten}@private.example.org"
        reject = ten % 2 == 0
        harmful = {
            "event_id": f"{name}-harm",
            "constitutional_hash": HASH,
            "violations": ["harmful_content"],
            "compliance_score": 0.2,
            "model_id": "alpha",
            "prompt": f"question {name} of {mail}, card {CARD}, from {ADDRESS}",
            "response": f"answer {name} a",
        }
        subject = {
            **harmful,
            "event_id": f"{name}-subject",
            "violations": [{"type": "privacy_violation", "severity": "high"}],
            "subject_id": mail,
            "prompt": f"question {name} b, call {PHONE}",
            "response": f"answer {name} b",
        }
        reused = {**subject, "response": f"answer {name} c"}
        low = {
            "event_id": f"{name}-low",
            "compliance_score": 0.5,
            "model_id": "beta",
            "prompt": f"question {name} d",
            "response": f"answer {name} d",
        }
        review = {
            "event_id": f"{name}-review",
            "source": "human_review",
            "target_event_id": f"{name}-harm",
            "verdict": "reject" if reject else "approve",
            "reviewer_id": f"reviewer {ten}",
        }
        evaluation = {"event_id": f"{name}-evaluation", "event_type": "policy_evaluation", "compliance_score": 0.97}
        routine = {"event_id": f"{name}-routine", "status": "success", "compliance_score": 0.99}
        failure = {"event_id": f"{name}-failure", "status": "failure", "user": {"email": mail}}
        broken = {"event_id": f"{name}-broken", "compliance_score": "high", "prompt": f"write to {mail}"}
        self.feedback.append(review)
        self.events += [harmful, subject, subject, reused, low, evaluation, routine, failure, broken]
        self.outcome.update(
            {
                "violation": 3,
                "trigger": 1,
                "feedback": 1,
                "evaluation": 1,
                "filtered": 1,
                "trail": 1,
                "duplicate": 1,
                "dead": 1,
                "conflict": 1,
            }
        )
        reviewed = ("new", 30) if reject else ("retired", 10)
        self.examples |= {
            (f"{name}-harm", f"answer {name} a"): reviewed,
            (f"{name}-subject", f"answer {name} b"): ("new", 10),
            (f"{name}-subject", f"answer {name} c"): ("new", 10),
            (f"{name}-low", f"answer {name} d"): ("new", 5),
        }


class Pipeline:
    """A running system, and the three ways into it."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self.folder = folder
        self.bootstrap = system.stack.broker.bootstrap
        self.database = Database(system.settings.database.url)

    def emit(self, events: list[Event]) -> None:
        """As an application does that is instrumented with OpenTelemetry."""
        with LogEmitter(f"{self.system.url(Role.ROUTE)}/v1/logs", "assistant") as emitter:
            for start in range(0, len(events), 50):
                emitter.emit(events[start : start + 50])

    def produce(self, values: list[bytes]) -> None:
        """As a producer does that writes to Kafka itself."""

        async def send() -> None:
            async with AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all") as producer:
                await asyncio.gather(*[await producer.send(INPUT, value) for value in values])

        asyncio.run(send())

    def emit_file(self, events: list[Event], via: str) -> None:
        """As an operator does with a file."""
        file = self.folder / f"{via}.jsonl"
        file.write_bytes(b"\n".join(map(orjson.dumps, events)))
        done = cli(self.system, "emit", str(file), "--via", via, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["events"] == len(events)

    def routed(self) -> dict[str, Any]:
        return stats(self.system, Role.ROUTE, "routing")

    def settle(self, records_in: int) -> dict[str, Any]:
        """Wait until the router has taken so many records and curation has stored all that came of them."""
        wait_until(lambda: self.routed().get("in", 0) >= records_in, f"{records_in} records are routed")
        wait_until(lambda: lag(self.bootstrap, "flywheel-curate", CURATED) == 0, "curation has taken everything")
        snapshot = self.routed()
        assert snapshot["in"] == records_in
        assert snapshot["in"] == sum(snapshot[name] for name in OUTCOMES)
        return snapshot

    def stored(self) -> dict[tuple[str, str], tuple[str, int]]:
        """(event id, answer) -> (status, priority) of all examples; each pair must stand for one."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(examples)).all()
        found = {(row.event_id, row.response): (row.status, row.priority) for row in rows}
        assert len(found) == len(rows), "one event has two examples"
        return found

    def count(self, query: sa.Select[Any]) -> int:
        with self.database.read() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar_one())

    def unsent(self) -> int:
        return self.count(sa.select(outbox).where(outbox.c.delivered_at.is_(None)))

    def cycles(self) -> int:
        """How many cycles there are; their audit entries and records may still be on the way."""
        return self.count(sa.select(cycles))

    def topics(self) -> dict[str, list[Record]]:
        return read_topics(self.bootstrap)
