"""Sends audit events through the OpenTelemetry SDK's OTLP exporter, and knows what was taken.

The SDK's batch processor drops records silently when its queue is full. Whoever emits audit events must not lose one,
so this hands the exporter whole batches and looks at its answer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import orjson
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

SCOPE = InstrumentationScope("constitutional-flywheel")
TIMEOUT_S = 30.0


class EmitFailed(RuntimeError):
    """A batch was not taken; names the endpoint and how many records it held. Sending it again is safe."""


class LogEmitter:
    """Emits events as log records with a JSON body, one batch a call."""

    def __init__(self, endpoint: str, service: str, token: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else None
        self.endpoint = endpoint
        self._resource = Resource.create({"service.name": service})
        self._exporter = OTLPLogExporter(
            endpoint=endpoint, headers=headers, timeout=TIMEOUT_S, compression=Compression.Gzip
        )

    def emit(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Send a batch and return once it was taken; raises `EmitFailed`."""
        if not events:
            return
        result = self._exporter.export([self._record(event) for event in events])
        if result is not LogRecordExportResult.SUCCESS:
            raise EmitFailed(f"{self.endpoint} did not take {len(events)} events: is the router up? Send them again")

    def _record(self, event: Mapping[str, Any]) -> ReadableLogRecord:
        return ReadableLogRecord(
            LogRecord(
                timestamp=time.time_ns(),
                observed_timestamp=time.time_ns(),
                severity_number=SeverityNumber.INFO,
                body=orjson.dumps(event).decode(),
                event_name=str(event.get("event_type") or "audit_event"),
            ),
            resource=self._resource,
            instrumentation_scope=SCOPE,
        )

    def __enter__(self) -> LogEmitter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
