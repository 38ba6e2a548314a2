"""Trace contexts on their way through the router: W3C `traceparent` headers, and what a batch's trace must offer.

Source: W3C Trace Context, level 2 (`traceparent`: version, trace id, parent id, flags); OpenTelemetry semantic
conventions for messaging (a span that processes a message links to the contexts that the message carries).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from agents.routing.identity import EventIdentity
from agents.routing.message import DecodedRecord, InboundMessage

TRACEPARENT = "traceparent"

_IDS = re.compile(r"(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}")
_HEADER = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_NOT_SAMPLED = (0, "0", "00")


class BatchTrace(Protocol):
    """The trace of one batch."""

    def saw(self, message: InboundMessage, records: int) -> None:
        """A message of several records was decoded; of one record a message is taken to be without being told."""

    def header(self, record: DecodedRecord, identity: EventIdentity) -> bytes | None:
        """Return the `traceparent` that a routed record carries on, or None. A message's records come together."""

    def end(self) -> str | None:
        """The batch is acknowledged. Returns the trace id of one of its spans, or None where it has none."""


class ContextOnly:
    """No spans: a record carries on the context that it came with."""

    __slots__ = ()

    def saw(self, message: InboundMessage, records: int) -> None:
        """Nothing to remember."""

    def header(self, record: DecodedRecord, identity: EventIdentity) -> bytes | None:  # noqa: ARG002 - others need it
        """See `BatchTrace.header`."""
        return record_context(record)

    def end(self) -> str | None:
        """Nothing to end."""
        return None


def record_context(record: DecodedRecord) -> bytes | None:
    """Return the context a record came with: its own trace and span, else its message's `traceparent` header.

    The flags say "sampled" unless the event says otherwise (`trace_flags`): an event that names its span was told by
    an application that had one.
    """
    event = record.event
    trace, span = event.get("trace_id"), event.get("span_id")
    if type(trace) is str and type(span) is str:
        ids = f"{trace}-{span}".lower()
        if _IDS.fullmatch(ids):
            return f"00-{ids}-{'00' if event.get('trace_flags') in _NOT_SAMPLED else '01'}".encode()
    headers = record.message.headers
    return message_context(headers) if headers else None


def message_context(headers: Mapping[str, bytes]) -> bytes | None:
    """Return a message's `traceparent` header if it is a valid one of version 00; others are not carried on."""
    context = headers.get(TRACEPARENT)
    return context if context is not None and _HEADER.fullmatch(context) else None
