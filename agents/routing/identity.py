"""Who an event is: scoped by its producer, with a fingerprint of its content.

BLAKE2b (RFC 7693) with 128-bit digests throughout: a producer must not be able to make its event collide with
another's, or a reused digest could hide a violation.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import orjson

from agents.routing.message import Event

_DIGEST_BYTES = 16

VOLATILE_FIELDS = frozenset(
    (
        "timestamp",
        "observed_timestamp",
        "trace_id",
        "span_id",
        "parent_span_id",
        "trace_flags",
        "traceparent",
        "tracestate",
        # Where it was told from, not what happened: a retry through another collector is the same event.
        "resource",
    )
)
"""Fields that change when the same thing is told twice, so the fingerprint leaves them out."""


class EventIdentity(NamedTuple):
    """The identity of one event: producer, id within it, fingerprint of the content (hex)."""

    service: str
    id: str
    fingerprint: str

    def digest(self) -> bytes:
        """Return 16 bytes that stand for (service, id): the claim's key, and a source of sampling randomness."""
        return id_digest(self.service, self.id)


def id_digest(service: str, event_id: str) -> bytes:
    """Return BLAKE2b-128 of the pair, with the service's length in front so that no two pairs run together."""
    return blake2b(f"{len(service)}:{service}{event_id}".encode(), digest_size=_DIGEST_BYTES).digest()


def own_id(event: Event) -> str | None:
    """Return the id the producer gave, or None; an empty one counts as none."""
    return event.get("event_id") or None


def identify(event: Event, service: str) -> EventIdentity:
    """Return the identity of a valid event.

    Without an `event_id` the id is the digest of the whole event, trace ids and timestamp included: two equal
    violations a minute apart are two events.
    """
    return EventIdentity(service, own_id(event) or _hex(event), fingerprint(event))


def fingerprint(event: Event) -> str:
    """Return the digest of the event's content without the fields that vary from telling to telling."""
    return _hex({name: value for name, value in event.items() if name not in VOLATILE_FIELDS})


def _hex(event: Event) -> str:
    return blake2b(orjson.dumps(event, option=orjson.OPT_SORT_KEYS), digest_size=_DIGEST_BYTES).hexdigest()
