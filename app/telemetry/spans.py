"""A span for each followed message, by the OpenTelemetry SDK.

Source: OpenTelemetry semantic conventions for messaging and for Kafka: a consumer's span that processes a message is
the root of a trace of its own and links to the contexts that the message carries.

What is followed is decided by the record, with the rule by which events are sampled (`agents.routing.sample`): the 56
random bits of the trace it travels in, else of its identity, against a threshold. So a trace is followed through every
router or through none, whatever shares its messages, and nothing is spent on a span before that is decided.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NoOpTracer, Span, SpanContext, SpanKind, TraceFlags

from agents.routing import sample
from agents.routing.identity import EventIdentity
from agents.routing.message import DecodedRecord, Event, InboundMessage, where
from agents.routing.trace import BatchTrace, ContextOnly, message_context, record_context
from app import __version__
from app.telemetry.delivery import Delivery
from app.telemetry.tracing import SpanCounts

log = logging.getLogger(__name__)

MAX_LINKS = 128
SCOPE = "flywheel.routing"

ROOT = Context()
"""No parent: whatever runs around a batch, its messages begin traces of their own."""


class Tracing:
    """The tracer of a process.

    Args:
        endpoint: the OTLP receiver, see `TelemetrySettings`.
        sample_rate: of traces, above 0.
        service: `service.name` and consumer group.
        counts: gets what becomes of ended spans.
    """

    def __init__(self, endpoint: str, sample_rate: float, service: str, counts: SpanCounts) -> None:
        # A rate too small for 56 bits keeps the last of them, so that a threshold has 14 digits.
        self.threshold = min(sample.threshold(sample_rate), 2**56 - 1)
        self.threshold_digits = f"{self.threshold:014x}".encode()
        self.service = service
        self._delivery = Delivery(endpoint, counts)
        self.ids = Ids()
        provider = TracerProvider(
            id_generator=self.ids,
            sampler=ALWAYS_ON,  # whoever starts a span has decided
            resource=Resource.create({"service.name": service, "service.version": __version__}),
            span_limits=SpanLimits(max_links=MAX_LINKS),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._delivery)
        self.tracer = provider.get_tracer(SCOPE, __version__)

    def batch(self) -> BatchTrace:
        """Begin the trace of a batch."""
        # OTEL_SDK_DISABLED: its spans have no ids to carry on.
        return ContextOnly() if isinstance(self.tracer, NoOpTracer) else SpanTrace(self)

    def close(self, within_s: float) -> None:
        """Deliver what has ended, for `within_s` seconds at most; what is left then is counted as dropped."""
        self._delivery.close(within_s)


class SpanTrace:
    """The spans of one batch: one for each message that holds a followed record."""

    __slots__ = ("_message", "_records", "_routed", "_span", "_spans", "_started_ns", "_threshold", "_tracing")

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._threshold = tracing.threshold_digits
        self._started_ns = time.time_ns()
        self._records: dict[int, int] = {}
        """How many records a message holds, by the message's `id()`, where it is not one."""
        self._spans: list[MessageSpan] = []
        self._message: InboundMessage | None = None
        self._span: MessageSpan | None = None
        self._routed = 0

    def saw(self, message: InboundMessage, records: int) -> None:
        """See `BatchTrace.saw`."""
        self._records[id(message)] = records

    def header(self, record: DecodedRecord, identity: EventIdentity) -> bytes | None:
        """Return the context of the message's span for a followed record, for any other the one it came with."""
        message = record.message
        if message is not self._message:
            self._leave()
            self._message = message
        self._routed += 1
        context = record_context(record)
        if context is None or "tracestate" in record.event:
            if not self._follows(record.event, identity):
                return context
        # The last 14 digits of the trace id are its 56 random bits, and digits sort as the numbers do.
        elif context[21:35] < self._threshold:
            return context
        if self._span is None:
            try:
                self._span = MessageSpan(self._tracing, message, self._records.get(id(message), 1), self._started_ns)
            except Exception as error:  # noqa: BLE001 - a fault of the tracer must not make dead letters
                log.warning("A span was not begun: %s", where(error))
                return context
            self._spans.append(self._span)
        self._span.link(context)
        return self._span.header

    def end(self) -> str | None:
        """End the batch's spans: all that came of it is acknowledged. Returns one's trace id."""
        example = self._spans[0].header[3:35].decode() if self._spans else None
        self._leave()
        self._message = None
        now = time.time_ns()
        for span in self._spans:
            try:
                span.end(now)
            except Exception as error:  # noqa: BLE001 - a fault of the tracer must not have the batch routed again
                log.warning("A span was not ended: %s", where(error))
        self._spans.clear()
        return example

    def _follows(self, event: Event, identity: EventIdentity) -> bool:
        randomness = sample.trace_randomness(event)
        if randomness is None:
            randomness = sample.digest_randomness(identity.digest())
        return randomness >= self._tracing.threshold

    def _leave(self) -> None:
        """The message at hand has no more records."""
        if self._span is not None:
            self._span.routed = self._routed
        self._span = None
        self._routed = 0


class MessageSpan:
    """The span of one message. `header` is its context as a `traceparent`; set `routed` before it ends."""

    __slots__ = ("_links", "_records", "_span", "header", "routed")

    def __init__(self, tracing: Tracing, message: InboundMessage, records: int, started_ns: int) -> None:
        self.routed = 0
        self._records = records
        self._span = tracing.tracer.start_span(
            f"{message.topic} process",
            context=ROOT,
            kind=SpanKind.CONSUMER,
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": message.topic,
                "messaging.destination.partition.id": str(message.partition),
                "messaging.kafka.offset": message.offset,
                "messaging.consumer.group.name": tracing.service,
            },
            start_time=started_ns,
        )
        self.header = traceparent_of(self._span).encode()
        self._links: dict[bytes, None] = {}
        self.link(message_context(message.headers) if message.headers else None)

    def link(self, context: bytes | None) -> None:
        """Link to a context, given as a `traceparent`; once, and to `MAX_LINKS` at most."""
        if context is not None and len(self._links) < MAX_LINKS:
            self._links[context] = None

    def end(self, now_ns: int) -> None:
        """End the span, with all that is known of its message."""
        for context in self._links:
            self._span.add_link(remote(context))
        self._span.set_attributes(
            {
                "flywheel.message.records": self._records,
                "flywheel.message.routed": self.routed,
                "flywheel.message.dropped": self._records - self.routed,
            }
        )
        self._span.end(now_ns)


class Ids(RandomIdGenerator):
    """Random ids, but for a span that must have given ones."""

    def __init__(self) -> None:
        self._given: SpanContext | None = None

    @contextmanager
    def fixed(self, given: SpanContext) -> Iterator[None]:
        """A span that is started within the block has the ids of `given`. From one thread only."""
        self._given = given
        try:
            yield
        finally:
            self._given = None

    def generate_trace_id(self) -> int:
        """See the SDK."""
        return super().generate_trace_id() if self._given is None else self._given.trace_id

    def generate_span_id(self) -> int:
        """See the SDK."""
        return super().generate_span_id() if self._given is None else self._given.span_id


def traceparent_of(span: Span) -> str:
    """A span's own context as a `traceparent`."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def remote(traceparent: bytes) -> SpanContext:
    """Return a valid `traceparent` as the context of a span elsewhere."""
    trace_id, span_id, flags = (int(part, 16) for part in traceparent.split(b"-")[1:])
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
