"""An application under OpenTelemetry's SDK that tells its audit events within spans, for tests that follow a trace."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import get_current
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from otlp_receiver import context

NAME = "application"


class Traces(RandomIdGenerator):
    """Trace ids whose random bits say whether a router that follows half of the traces follows them."""

    followed = True

    def generate_trace_id(self) -> int:
        return (secrets.randbits(71) + 1) << 56 | self.followed << 55 | secrets.randbits(55)


class Application:
    """Sends its events by OTLP to `logs` (a router's endpoint, or a collector's) and its spans to `spans`, if anywhere.

    Both are whole URLs.
    """

    def __init__(self, logs: str, spans: str | None = None) -> None:
        self._traces = Traces()
        resource = Resource.create({"service.name": NAME})
        tracers = TracerProvider(resource=resource, id_generator=self._traces, shutdown_on_exit=False)
        if spans is not None:
            tracers.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=spans)))
        self._tracer = tracers.get_tracer(NAME)
        self._provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_log_record_processor(
            BatchLogRecordProcessor(OTLPLogExporter(endpoint=logs), schedule_delay_millis=60_000)
        )
        self._logger = self._provider.get_logger(NAME)

    def call(self, event: dict[str, Any], *, followed: bool = True) -> bytes:
        """Tell an event within a span; returns the span's trace and span id as in a `traceparent`."""
        self._traces.followed = followed
        with self._tracer.start_as_current_span("call") as span:
            body = json.dumps(event)
            self._logger.emit(LogRecord(context=get_current(), severity_number=SeverityNumber.INFO, body=body))
            made = span.get_span_context()
        return f"{made.trace_id:032x}-{made.span_id:016x}".encode()

    def flush(self) -> None:
        """Send all that was told as one message."""
        assert self._provider.force_flush()

    def close(self) -> None:
        """End the exporter's thread."""
        self._provider.shutdown()


def named(spans: Iterable[Span], name: str) -> list[Span]:
    """The spans of a name."""
    return [span for span in list(spans) if span.name == name]


def linked(spans: Iterable[Span], to: bytes) -> list[Span]:
    """The spans that link to a context (see `otlp_receiver.context`)."""
    return [span for span in list(spans) if to in [context(link) for link in span.links]]
