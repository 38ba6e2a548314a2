"""What the routing pipeline is tested with: claims in memory, a sink that remembers, and a plain model of the claims.

The in-memory claims answer as the ones in Redis do (`test_routing_dedup.py` holds those to the same model).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson

from agents.routing.bounds import DecodeLimits
from agents.routing.classify import RoutingRules
from agents.routing.counters import Counters
from agents.routing.dedup import ClaimResult
from agents.routing.identity import EventIdentity
from agents.routing.limits import DeadLetterLimits
from agents.routing.pipeline import ClaimStore, Pipeline
from agents.routing.publish import OutRecord
from agents.routing.watch import DeadLetterWatch

HASH = "cdd01ef066bc6cf2"
OUTCOMES = ("routed", "filtered", "duplicate", "sampled_out", "dead_lettered")
DEAD_LETTERS = "audit-dead-letters"
MOST_CONTENTS = 16
"""How many contents of one id are told apart."""

Event = dict[str, Any]


class MemoryClaims:
    """What claims promise, said plainly: per id its contents in the order they came, each with its owner."""

    def __init__(self) -> None:
        self._owners: dict[tuple[str, str], dict[str, str]] = {}

    async def claim(self, batch: Sequence[tuple[EventIdentity, str]], ttl_s: int | None = None) -> list[ClaimResult]:
        """Claim in order, as `agents.routing.dedup.Claims` does."""
        return [self.one(*entry) for entry in batch]

    def one(self, who: EventIdentity, owner: str) -> ClaimResult:
        contents = self._owners.setdefault((who.service, who.id), {})
        first = not contents or next(iter(contents)) == who.fingerprint
        if who.fingerprint in contents:
            if contents[who.fingerprint] != owner:
                return ClaimResult.DUPLICATE
            return ClaimResult.OWNED if first else ClaimResult.CONFLICT
        if len(contents) < MOST_CONTENTS:
            contents[who.fingerprint] = owner
        return ClaimResult.FRESH if first else ClaimResult.CONFLICT


class Crashed(Exception):
    """The worker died while it published."""


class MemorySink:
    """Remembers what was published. `crash_after` records of the next batch it fails, once."""

    def __init__(self, max_record_bytes: int = 1_000_000) -> None:
        self.max_record_bytes = max_record_bytes
        self.records: list[OutRecord] = []
        self.crash_after: int | None = None

    async def publish(self, records: Iterable[OutRecord]) -> None:
        """Take all, or the first few and fail."""
        out, crash_after = list(records), self.crash_after
        if crash_after is None:
            self.records += out
            return
        self.crash_after = None
        self.records += out[:crash_after]
        raise Crashed

    def taken(self) -> list[OutRecord]:
        """Hand over what was published since the last call."""
        out, self.records = self.records, []
        return out


def no_scrub(event: Event) -> Mapping[str, int]:
    """Find nothing."""
    return {}


def pipeline(
    claims: ClaimStore,
    sink: MemorySink,
    rules: RoutingRules | None = None,
    limits: DecodeLimits | None = None,
    scrub: Callable[[Event], Mapping[str, int]] = no_scrub,
) -> Pipeline:
    """A router at second 0 that does not stop however many dead letters there are."""
    parts = (rules or RoutingRules(HASH), limits or DecodeLimits(), scrub, claims, sink, Counters())
    pipe = Pipeline(*parts, clock=lambda: 0.0)
    pipe.watch = DeadLetterWatch(DeadLetterLimits(max_share=1.0, max_run=0))
    return pipe


def check_accounts(pipe: Pipeline) -> dict[str, Any]:
    """Hold a router's counters to the accounting identity, and return them."""
    snapshot = pipe.counters.snapshot()
    assert snapshot["in"] == sum(snapshot[name] for name in OUTCOMES)
    for outcome, by_class in snapshot["by_classification"].items():
        assert sum(by_class.values()) == snapshot[outcome]
    assert sum(snapshot["by_reason"].values()) == snapshot["dead_lettered"]
    return snapshot


def published(records: Iterable[OutRecord]) -> list[Event]:
    """The events among records, dead letters left out."""
    return [orjson.loads(record.value) for record in records if record.topic != DEAD_LETTERS]
