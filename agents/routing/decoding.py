"""What the decoding of one message shares between the forms: its bounds, its sieve, and the records so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agents.routing.bounds import DecodeLimits
from agents.routing.message import DecodedRecord, Event, InboundMessage, Reason, Rejected, Ruling, Unroutable

UNKNOWN_SERVICE = "unknown"

Decoded = DecodedRecord | Rejected

Sieve = Callable[[Event], Ruling | None]
"""Rules on an event by the fields that decide: what it is, or why it can never be routed, or None to drop it.

It never raises.
"""


class Decoding:
    """One message on its way to records.

    Args:
        message: the message.
        limits: what is accepted of it.
        sieve: drops records; None keeps all.
    """

    __slots__ = ("limits", "message", "out", "sieve", "total", "walk")

    def __init__(self, message: InboundMessage, limits: DecodeLimits, sieve: Sieve | None) -> None:
        self.message = message
        self.limits = limits
        self.sieve = sieve
        self.out: list[Decoded] = []
        self.total = 0
        """Records so far, with those that were dropped."""
        self.walk: bool | None = None
        """Whether the bounds on depth and strings can be exceeded at all; None where nobody has looked yet."""

    def expect(self, count: int) -> None:
        """Refuse a message that is about to have `count` more records than it may.

        Raises:
            Unroutable: the message has more records than the limit.
        """
        if self.total + count > self.limits.max_records:
            detail = f"{self.total + count} records in one message, over {self.limits.max_records}"
            raise Unroutable(Reason.TOO_MANY_RECORDS, detail)

    def admit(self, count: int) -> int:
        """Count `count` more records in, and return the index of the first; raises as `expect` does."""
        first = self.total
        self.total += count
        if self.total > self.limits.max_records:
            self.total = first
            self.expect(count)
        return first

    def keep(
        self,
        index: int,
        event: Event,
        service: str | None,
        ruling: Ruling | None,
        single: bool = False,
        pending: Any = None,
    ) -> None:
        """Keep a record that the sieve left."""
        name = service or _service_of(event) or UNKNOWN_SERVICE
        self.out.append(DecodedRecord(self.message, index, event, name, single, ruling, pending))

    def reject(self, index: int, reason: Unroutable, value: bytes | None) -> None:
        """Keep a record that can never be routed."""
        self.out.append(Rejected(self.message, index, reason.reason, reason.detail, value))


def _service_of(event: Event) -> str | None:
    resource = event.get("resource")
    name = resource.get("service.name") if isinstance(resource, dict) else None
    if not isinstance(name, str) or not name:
        name = event.get("service.name")
    return name if isinstance(name, str) and name else None
