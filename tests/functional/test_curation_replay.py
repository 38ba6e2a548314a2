"""Real red-team conversations replayed as events, half of them with the better answer as a reviewer's correction."""

from __future__ import annotations

import asyncio
import gzip
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from aiokafka import AIOKafkaProducer
from systems import running, wait_until

from agents.curation import manifest as snapshots
from agents.curation.near import jaccard, shingles
from app import wiring
from app.roles import Role
from app.store import Database, examples
from app.wiring import cycle_config
from models.example import Example

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]

TOKEN = "reviewers-only"
CHANGES: dict[str, dict[str, Any]] = {"web": {"token": TOKEN}, "curation": {"min_examples": 10**9}}
TURN, ANSWER = "\n\nHuman: ", "\n\nAssistant: "


@dataclass(frozen=True, slots=True)
class Conversation:
    """The last request of a conversation, the worse answer to it and the better one."""

    number: int
    prompt: str
    worse: str
    better: str

    @property
    def corrected(self) -> bool:
        """Every second one is reviewed."""
        return self.number % 2 == 0

    def event(self) -> dict[str, Any]:
        return {
            "event_id": f"conversation-{self.number}",
            "constitutional_hash": "cdd01ef066bc6cf2",
            "violations": ["harmful_content"],
            "compliance_score": 0.2,
            "model_id": "assistant",
            "prompt": self.prompt,
            "response": self.worse,
            # A few people ask many of them.
            "subject_id": f"person-{self.number % 700}@example.org",
            "resource": {"service.name": "replay"},
        }

    def review(self) -> dict[str, Any]:
        return {
            "feedback_id": f"review-{self.number}",
            "target_event_id": f"conversation-{self.number}",
            "verdict": "correct",
            "corrected_response": self.better,
            "reviewer_id": "reviewer-1",
        }


def conversations(data: Path) -> list[Conversation]:
    found = []
    with gzip.open(data / "hh_harmless_dev.jsonl.gz", "rt", encoding="utf-8") as file:
        for number, line in enumerate(file):
            row = orjson.loads(line)
            before, _, worse = row["rejected"].rpartition(ANSWER)
            better = row["chosen"].rpartition(ANSWER)[2]
            prompt = before.rpartition(TURN)[2]
            if prompt.strip() and worse.strip() and better.strip():
                found.append(Conversation(number, prompt.strip(), worse.strip(), better.strip()))
    return found


def produce(bootstrap: str, events: Sequence[dict[str, Any]]) -> None:
    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
            for start in range(0, len(events), 100):
                await producer.send("otel-audit-events", orjson.dumps(events[start : start + 100]))
            await producer.flush()

    asyncio.run(send())


def test_curation_ends_with_a_set_that_can_be_defended(tmp_path: Path, test_data: Path) -> None:
    told = conversations(test_data)
    with running(tmp_path, "mock", None, CHANGES) as system:
        system.start_workers([Role.ROUTE, Role.CURATE])
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=system.url(Role.ROUTE), headers=headers, timeout=60.0, trust_env=False) as http:
            for one in told:
                if one.corrected:
                    assert http.post("/api/v1/feedback", json=one.review()).status_code == 202
        produce(system.stack.broker.bootstrap, [one.event() for one in told])
        database = Database(system.settings.database.url)

        def stored() -> list[Example]:
            with database.read() as connection:
                return examples.waiting(connection, "assistant", "default")

        reviewed = sum(one.corrected for one in told)
        wait_until(lambda: len(stored()) == len(told), "all conversations are examples")
        wait_until(lambda: sum(one.correction_signed for one in stored()) == reviewed, "all corrections are applied")
        found = stored()
        manifest = snapshot(system.settings, found)
        database.close()

    by_id = {one.example_id: one for one in found}
    scrubber = wiring.scrubber(system.settings, "scrub")
    wanted = {f"conversation-{one.number}": one for one in told}
    for one in found:
        source = wanted[one.event_id or ""]
        assert one.prompt == scrubber.scrub_text(source.prompt).text
        assert one.correction_signed == source.corrected
        if source.corrected:
            assert one.corrected_response == scrubber.scrub_text(source.better).text

    members = [by_id[member.example_id] for member in manifest.members]
    held_out = [by_id[member.example_id] for member in manifest.held_out]
    assert len(members) + len(held_out) + sum(manifest.excluded.values()) == len(found)
    # One example a person, nobody left out who has a usable one, no personal data, nothing on both sides.
    subjects = Counter(one.subject_token for one in members + held_out)
    assert set(subjects.values()) == {1}
    assert None not in subjects
    detector = wiring.scrubber(system.settings, "detect")
    texts = [text for one in members for text in (one.prompt, one.response, one.corrected_response or "")]
    assert not [text for text in texts if detector.find(text)]
    trained = [shingles(one.prompt) for one in members]
    assert all(jaccard(shingles(one.prompt), known) < 0.8 for one in held_out for known in trained)
    share = len(held_out) / (len(members) + len(held_out))
    assert 0.05 < share < 0.16, "the split is by hash, a tenth held out"
    report(manifest, members, held_out, reviewed)


def snapshot(settings: Any, found: Sequence[Example]) -> Any:
    config = cycle_config(settings)
    rules = snapshots.ManifestRules(
        config.digest_key.encode(), config.held_out_share, 64, config.class_shares, config.near_duplicate
    )
    detector = wiring.scrubber(settings, "detect")
    return snapshots.build("replay", "default", found, rules, lambda text: bool(detector.find(text)), "d")


def report(manifest: Any, members: Sequence[Example], held_out: Sequence[Example], reviewed: int) -> None:
    """For `-s`: the manifest as a person reads it; FLYWHEEL_TEST_SHOW_EXAMPLES shows so many examples too."""
    print(
        f"\n{len(members)} to train on ({sum(one.correction_signed for one in members)} with a signed correction, of "
        f"{reviewed}), {len(held_out)} held out, left out: {manifest.excluded}"
    )
    for one in members[: int(os.environ.get("FLYWHEEL_TEST_SHOW_EXAMPLES", "0"))]:
        print(f"--- {one.event_id}\n  asked: {one.prompt[:300]!r}\n  given: {one.response[:300]!r}")
        print(f"  corrected: {(one.corrected_response or '')[:300]!r}")
