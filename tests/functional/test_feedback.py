"""A reviewer's correction, from the endpoint over Kafka and the router to the training example it corrects."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from aiokafka import AIOKafkaProducer
from systems import running, wait_until

from app.roles import Role
from app.store import Database, examples
from models.example import Example

TOKEN = "reviewers-only"
CHANGES = {"web": {"token": TOKEN}, "curation": {"min_examples": 1_000}}


def harmful(number: int) -> dict[str, Any]:
    return {
        "event_id": f"e{number}",
        "constitutional_hash": "cdd01ef066bc6cf2",
        "violations": ["harmful_content"],
        "compliance_score": 0.1,
        "model_id": "alpha",
        "prompt": f"question {number}",
        "response": f"answer {number}",
        "resource": {"service.name": "assistant"},
    }


def produce(bootstrap: str, events: list[dict[str, Any]]) -> None:
    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
            for event in events:
                await producer.send_and_wait("otel-audit-events", orjson.dumps(event))

    asyncio.run(send())


@pytest.mark.timeout(300)
def test_a_signed_correction_becomes_the_target_and_a_forged_one_does_not(tmp_path: Path) -> None:
    with running(tmp_path, "mock", None, CHANGES) as system:
        system.start_workers([Role.ROUTE, Role.CURATE])
        bootstrap = system.stack.broker.bootstrap
        headers = {"Authorization": f"Bearer {TOKEN}"}
        review = {
            "target_event_id": "e1",
            "verdict": "correct",
            "corrected_response": "I won't; ask ada@example.org.",
            "reviewer_id": "bob",
            "feedback_id": "review-1",
        }
        with httpx.Client(base_url=system.url(Role.ROUTE), headers=headers, timeout=60.0, trust_env=False) as http:
            # Before its event, and twice: it waits, and counts once.
            for _ in range(2):
                answer = http.post("/api/v1/feedback", json=review)
                assert answer.status_code == 202, answer.text
                assert answer.json() == {"event_id": "review-1", "signed": True}
            assert http.get("/stats").json()["feedback"] == {"correct": 2}
            refused = http.post("/api/v1/feedback", json=review, headers={"Authorization": "Bearer guessed"})
            assert refused.status_code == 401
        forged = review | {"event_id": "review-2", "target_event_id": "e2", "source": "human_review"}
        del forged["feedback_id"]
        produce(bootstrap, [harmful(1), harmful(2), forged | {"feedback_signature": "v1." + "0" * 64}])
        database = Database(system.settings.database.url)

        def stored() -> dict[str | None, Example]:
            with database.read() as connection:
                return {one.event_id: one for one in examples.search(connection, examples.Filter())}

        wait_until(lambda: [one.priority for one in stored().values()] == [30, 30], "both reviews are applied")
        found = stored()
        assert (found["e1"].corrected_response, found["e1"].correction_signed) == ("I won't; ask [EMAIL].", True)
        assert (found["e2"].corrected_response, found["e2"].correction_signed) == (None, False)
        database.close()
