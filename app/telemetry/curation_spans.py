"""A span for each followed record that curation stores.

It links to the router's span, which the record's `traceparent` header names, and to the application's span, which the
event names itself: so a search for the application's trace finds every hop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.trace import Link, SpanKind

from agents.curation.trace import Followed
from agents.routing import sample
from agents.routing.identity import id_digest
from agents.routing.message import DecodedRecord, InboundMessage
from agents.routing.trace import message_context, record_context
from app.telemetry.spans import ROOT, Tracing, remote, traceparent_of


class CurationSpans:
    """Follows records by the router's rule: the random bits of the event's trace, else of its identity."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def follow(self, message: InboundMessage, event: Mapping[str, Any]) -> Followed | None:
        """See `CurationTrace.follow`."""
        identity = event["routing_metadata"]["identity"]
        randomness = sample.trace_randomness(dict(event))
        if randomness is None:
            randomness = sample.digest_randomness(id_digest(str(identity.get("service")), str(identity.get("id"))))
        if randomness < self._tracing.threshold:
            return None
        told = record_context(DecodedRecord(message, 0, dict(event), str(identity.get("service"))))
        came = message_context(message.headers) if message.headers else None
        return _Record(self._tracing, message, [context for context in dict.fromkeys((told, came)) if context], told)


class _Record:
    """One record's span."""

    def __init__(
        self, tracing: Tracing, message: InboundMessage, contexts: list[bytes], application: bytes | None
    ) -> None:
        self._span = tracing.tracer.start_span(
            f"{message.topic} process",
            context=ROOT,
            kind=SpanKind.CONSUMER,
            links=[Link(remote(context)) for context in contexts],
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": message.topic,
                "messaging.destination.partition.id": str(message.partition),
                "messaging.kafka.offset": message.offset,
                "messaging.consumer.group.name": tracing.service,
            },
        )
        own = traceparent_of(self._span)
        self.links = own if application is None else f"{application.decode()},{own}"

    def end(self) -> None:
        """See `Followed.end`."""
        self._span.end()
