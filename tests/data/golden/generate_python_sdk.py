"""Captures what the OpenTelemetry SDK for Python exports over HTTP.

Run: python tests/data/golden/generate_python_sdk.py

Written with opentelemetry-sdk 1.45.2. Traces and times are fixed, so that the bytes change only with the SDK.
"""

from __future__ import annotations

import json

from capture import keep, receiver
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

NANOS = 1_767_225_600_000_000_001
TRACE, SPAN = 0x5B8EFFF798038103D269B633813FC60C, 0xEEE19B7EC3C1B174


def emit(endpoint: str, compression: Compression) -> None:
    """Emit one record of every kind that an application would."""
    attributes = {"service.name": "assistant", "service.instance.id": "0", "deployment.environment.name": "test"}
    resource = Resource.create(attributes | {"replicas": 3})
    provider = LoggerProvider(resource=resource)
    exporter = OTLPLogExporter(endpoint=f"{endpoint}/v1/logs", compression=compression)
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
    audit, other = provider.get_logger("audit", "1.2.3"), provider.get_logger("other")
    context = set_span_in_context(
        NonRecordingSpan(SpanContext(TRACE, SPAN, is_remote=False, trace_flags=TraceFlags(1)))
    )
    violation = {
        "event_id": "py-1",
        "constitutional_hash": "cdd01ef066bc6cf2",
        "violations": ["harmful_content"],
        "compliance_score": 0.2,
        "prompt": "naïve “question”",
    }
    audit.emit(
        timestamp=NANOS,
        observed_timestamp=NANOS + 1,
        context=context,
        severity_number=SeverityNumber.WARN,
        severity_text="WARN",
        body=json.dumps(violation, ensure_ascii=False),
        attributes={"workload_id": "w-1", "event_id": "the body wins"},
        event_name="constitutional.check",
    )
    audit.emit(
        timestamp=NANOS + 2,
        observed_timestamp=NANOS + 3,
        body={
            "event_id": "py-2",
            "compliance_score": 0.5,
            "model_id": "alpha",
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
            "raw": b"\x00\xff",
            "nothing": None,
            "nested": {"deep": {"er": [1, 2.5, True]}},
        },
        attributes={"tags": ["a", "b"], "count": 2**53 + 1, "ratio": 0.1, "cached": False},
        event_name="model.call",
    )
    audit.emit(
        timestamp=NANOS + 4,
        observed_timestamp=NANOS + 5,
        attributes={"status": "success", "compliance_score": 0.99, "event_id": "py-3"},
    )
    other.emit(observed_timestamp=NANOS + 6, context=context, body="a plain line", severity_number=SeverityNumber.INFO)
    other.emit(
        timestamp=NANOS + 7,
        observed_timestamp=NANOS + 8,
        body=json.dumps({"event_id": "py-5", "source": "human_review", "verdict": "approve"}),
    )
    other.emit(
        timestamp=NANOS + 9,
        observed_timestamp=NANOS + 10,
        context=context,
        attributes={"compliance_score": 0.9, "event_id": "py-6"},
        event_name="policy_evaluation",
    )
    other.emit(
        timestamp=NANOS + 11, observed_timestamp=NANOS + 12, body={"event_id": "py-7", "compliance_score": "bad"}
    )
    provider.shutdown()


def main() -> None:
    """Capture it, plain and compressed."""
    for name, compression in (("python_sdk", Compression.NoCompression), ("python_sdk_gzip", Compression.Gzip)):
        with receiver() as (endpoint, posted):
            emit(endpoint, compression)
        ((_, headers, body),) = posted
        keep(name, headers, body)


if __name__ == "__main__":
    main()
