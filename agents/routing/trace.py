"""Trace contexts on their way through the router: W3C `traceparent` headers, and what a batch's trace must offer.

Source: W3C Trace Context, level 2 (`traceparent`: version, trace id, parent id, flags); OpenTelemetry semantic
conventions for messaging (a span that processes a batch links to the contexts of the messages in it).
"""

from __future__ import annotations

import re
from typing import Protocol

from agents.routing import sample
from agents.routing.identity import EventIdentity
from agents.routing.message import DecodedRecord, Event

TRACEPARENT = "traceparent"

_SPAN_ID = re.compile(r"(?!0{16})[0-9a-fA-F]{16}")


class BatchTrace(Protocol):
    """The trace of one batch."""

    def header(self, record: DecodedRecord, identity: EventIdentity) -> bytes | None:
        """Return the `traceparent` that a routed record carries on, or None."""

    def end(self) -> None:
        """The batch is acknowledged."""


class ContextOnly:
    """No spans: a record carries on the context that it came with."""

    __slots__ = ()

    def header(self, record: DecodedRecord, identity: EventIdentity) -> bytes | None:  # noqa: ARG002 - others need it
        """See `BatchTrace.header`."""
        return record_context(record)

    def end(self) -> None:
        """Nothing to end."""


def record_context(record: DecodedRecord) -> bytes | None:
    """Return the context a record came with: its own trace and span, else its message's `traceparent` header."""
    context = event_context(record.event)
    if context is None and record.message.headers:
        return record.message.headers.get(TRACEPARENT)
    return context


def event_context(event: Event) -> bytes | None:
    """Return the `traceparent` of the span that an event was told in, or None where it names none.

    The flags say "sampled": an event that names its span was told by an application that recorded it.
    """
    trace = sample.trace_id(event)
    if trace is None:
        return None
    span = event.get("span_id")
    if not isinstance(span, str) or not _SPAN_ID.fullmatch(span):
        return None
    return f"00-{trace.lower()}-{span.lower()}-01".encode()
