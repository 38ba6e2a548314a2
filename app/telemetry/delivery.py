"""Delivers ended spans by OTLP from a thread of its own, from a bounded queue, and accounts for every one.

The SDK's batch processor drops spans without a word when its queue is full, offers no deadline for its last flush, and
its exporters log each attempt. Here spans are counted before they reach the queue, a stop waits no longer than it is
told to, and the log says once that the receiver is away and once that it is back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from urllib.parse import urlsplit

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from app.telemetry.tracing import SpanCounts

log = logging.getLogger(__name__)

MAX_WAITING = 512
"""Spans between their end and the receiver's answer. One with 128 links takes some 70 KB."""
BATCH = 128
DELAY_MS = 1000
EXPORT_TIMEOUT_S = 5.0
TRACES_PATH = "/v1/traces"


class Delivery(SpanProcessor):
    """The queue, and the thread that exports from it.

    Args:
        endpoint: the OTLP receiver, see `TelemetrySettings`.
        counts: gets what becomes of ended spans.
    """

    def __init__(self, endpoint: str, counts: SpanCounts) -> None:
        self._counts = counts
        self._exporter = CountedExporter(*exporter(endpoint), endpoint, counts)
        self._queue = BatchSpanProcessor(
            self._exporter, max_queue_size=MAX_WAITING, schedule_delay_millis=DELAY_MS, max_export_batch_size=BATCH
        )

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span for delivery; never waits. A full queue drops it."""
        self._counts.ended += 1
        if self._counts.waiting > MAX_WAITING:
            self._counts.dropped += 1
        else:
            self._queue.on_end(span)

    def close(self, within_s: float) -> None:
        """Deliver what waits, for `within_s` seconds at most; what is left is dropped. No span may end after it."""
        # A daemon: a receiver that accepts and never answers holds the export, and must not hold the process.
        closing = threading.Thread(target=self._queue.shutdown, name="spans-closing", daemon=True)
        closing.start()
        closing.join(within_s)
        left = self._exporter.abandon()
        if left:
            log.warning("%d spans are not delivered at the stop", left)


class CountedExporter(SpanExporter):
    """An OTLP exporter that counts what it delivers, and tells of a receiver that is away only once.

    Args:
        inner: the SDK's exporter.
        logger: the name it logs each attempt under; what it says is kept for the one warning that comes of it.
        endpoint: as configured, for the log.
        counts: gets what becomes of the spans.
    """

    def __init__(self, inner: SpanExporter, logger: str, endpoint: str, counts: SpanCounts) -> None:
        self._inner = inner
        self._endpoint = endpoint
        self._counts = counts
        self._lock = threading.Lock()
        self._failing = False
        self._abandoned = False
        self._heard = _LastWord()
        self._logger = logging.getLogger(logger)
        self._logger.addHandler(self._heard)
        self._logger.propagate = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export a batch; waits up to `EXPORT_TIMEOUT_S`, with several attempts where the receiver is away."""
        if self._abandoned:
            return SpanExportResult.FAILURE
        result = self._inner.export(spans)
        with self._lock:
            self._note(result is SpanExportResult.SUCCESS, len(spans))
        return result

    def abandon(self) -> int:
        """Break off what is under way, take nothing more, and return how many spans had no answer."""
        with self._lock:
            self._abandoned = True
            left = self._counts.waiting
            self._counts.dropped += left
        self._inner.shutdown()
        self._logger.removeHandler(self._heard)
        self._logger.propagate = True
        return left

    def shutdown(self) -> None:
        """Left to `abandon`, which always follows."""

    def _note(self, delivered: bool, spans: int) -> None:
        if self._abandoned:
            return
        if delivered:
            self._counts.exported += spans
        else:
            self._counts.failed += spans
        if not delivered and not self._failing:
            log.warning("%s takes no spans (%s); routing goes on without them", self._endpoint, self._heard.said)
        elif delivered and self._failing:
            log.info("%s takes spans again; %d were lost so far", self._endpoint, self._counts.failed)
        self._failing = not delivered


class _LastWord(logging.Handler):
    """Remembers what was logged last."""

    said = "no reason given"

    def emit(self, record: logging.LogRecord) -> None:
        self.said = record.getMessage()


def exporter(endpoint: str) -> tuple[SpanExporter, str]:
    """Return the exporter for an endpoint, and its logger: OTLP/HTTP for `http(s)`, OTLP/gRPC for `grpc(s)`.

    Headers, certificates and compression are taken from OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_HEADERS`).
    """
    parts = urlsplit(endpoint)
    if parts.scheme.startswith("grpc"):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        sender = GrpcExporter(endpoint=parts.netloc, insecure=parts.scheme == "grpc", timeout=EXPORT_TIMEOUT_S)
        return sender, "opentelemetry.exporter.otlp.proto.grpc.exporter"
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    path = parts.path.rstrip("/")
    url = parts._replace(path=path if path.endswith(TRACES_PATH) else path + TRACES_PATH).geturl()
    return HttpExporter(endpoint=url, timeout=EXPORT_TIMEOUT_S), "opentelemetry.exporter.otlp.proto.http.trace_exporter"
