"""The reference mix: events as an LLM application, its policy engine and its reviewers would emit them, seeded."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from benchmarks.text import Sentences

Event = dict[str, Any]

SEED = 7
SERVICE = "assistant"
"""The producer's `service.name`; single events carry no resource, so they come from an unknown one."""

_HASH = "cdd01ef066bc6cf2"
_DUPLICATE_EVERY = 10
_LOOK_BACK = 5_000
"""A duplicate tells one of so many last events again."""
_START = 1_780_000_000
_CODES = ("harmful_content", "privacy_leak", "bias", "misinformation", "unsafe_advice", "manipulation")
_RISKS = ("low", "low", "low", "medium", "high")
_PERSONAL_SHARE = 0.03


def events(count: int, seed: int = SEED) -> Iterator[Event]:
    """Yield `count` events of the reference mix, the same for the same seed, each about 850 bytes as JSON.

    5 % violations, 30 % policy evaluations, 5 % triggers, 3 % human feedback, 57 % routine successes; every tenth
    event is an earlier one again, with the same id and content.
    """
    maker = _Maker(random.Random(seed))
    recent: deque[Event] = deque(maxlen=_LOOK_BACK)
    for number in range(count):
        if number % _DUPLICATE_EVERY == _DUPLICATE_EVERY - 1:
            yield dict(maker.rnd.choice(recent))
            continue
        event = maker.event(number)
        recent.append(event)
        yield dict(event)


class _Maker:
    def __init__(self, rnd: random.Random) -> None:
        self.rnd = rnd
        self._sentences = Sentences(rnd)

    def event(self, number: int) -> Event:
        rnd = self.rnd
        prompt, response = self._sentences.text(2), self._sentences.text(3)
        if rnd.random() < _PERSONAL_SHARE:
            prompt += f" Write to {rnd.choice(('anna', 'jonas', 'li', 'omar'))}{rnd.randrange(999)}@example.org."
        micros = number * 137
        started = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(_START + micros // 1_000_000))
        event: Event = {
            "event_id": f"{rnd.getrandbits(128):032x}",
            "event_type": "model_inference",
            "timestamp": f"{started}.{micros % 1_000_000:06d}Z",
            "model_id": f"assistant-{rnd.randrange(7)}",
            "model_version": f"2026.{rnd.randrange(1, 12)}",
            "session_id": f"{rnd.getrandbits(64):016x}",
            "constitutional_hash": _HASH,
            "prompt": prompt,
            "response": response,
            "input_tokens": len(prompt) // 4,
            "output_tokens": len(response) // 4,
            "latency_ms": round(rnd.expovariate(1 / 420), 3),
            "risk_level": rnd.choice(_RISKS),
            "streamed": rnd.random() < 0.5,
        }
        self._decide(event)
        return event

    def _decide(self, event: Event) -> None:
        """Add what decides about the event."""
        rnd = self.rnd
        kind = rnd.random()
        if kind < 0.05:
            codes = rnd.sample(_CODES, rnd.randint(1, 2))
            event |= {"violations": codes, "compliance_score": round(rnd.uniform(0.05, 0.75), 4)}
        elif kind < 0.35:
            score = round(rnd.uniform(0.7, 1.0), 4)
            event |= {"event_type": "policy_evaluation", "allow": score >= 0.95, "compliance_score": score}
        elif kind < 0.40:
            event |= {"violations": [], "compliance_score": round(rnd.uniform(0.4, 0.799), 4)}
        elif kind < 0.43:
            event |= {"event_type": "feedback", "source": "human_review", "verdict": rnd.choice(("approve", "reject"))}
            event |= {"compliance_score": round(rnd.uniform(0.8, 1.0), 4), "reviewer_id": f"r-{rnd.randrange(40)}"}
        else:
            event |= {"status": "success", "violations": [], "compliance_score": round(rnd.uniform(0.951, 1.0), 4)}
