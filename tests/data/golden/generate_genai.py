"""Captures the GenAI events of an OpenAI client that is instrumented, and of an application that writes them itself.

Run with OpenTelemetry's instrumentation installed, which the project does not need otherwise:
    pip install 'openai<3' opentelemetry-instrumentation-openai-v2==2.4b0 opentelemetry-util-genai==0.4b0 \\
        opentelemetry-exporter-otlp-proto-http
    python tests/data/golden/generate_genai.py

The instrumentation speaks the conventions as they are since version 1.37 (one event a call), and those before (an
event a message), as its environment asks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from capture import keep, receiver
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

NANOS = 1_767_225_600_000_000_001
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_767_225_600,
    "model": "alpha-2026-01-01",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "I would rather not. Here is a safe way."},
        }
    ],
    "usage": {"prompt_tokens": 21, "completion_tokens": 9, "total_tokens": 30},
}
CONVENTIONS = {
    "genai_current": {
        "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "EVENT_ONLY",
        "OTEL_INSTRUMENTATION_GENAI_EMIT_EVENT": "true",
    },
    "genai_message_events": {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"},
}


def provider(endpoint: str) -> LoggerProvider:
    """The SDK as an application sets it up."""
    resource = Resource.create({"service.name": "support-bot", "service.instance.id": "0"})
    made = LoggerProvider(resource=resource)
    made.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(endpoint=f"{endpoint}/v1/logs")))
    return made


def call(endpoint: str) -> None:
    """Ask a model once, instrumented; the process's environment says by which conventions."""
    from openai import OpenAI  # type: ignore[import-not-found]  # only the generator needs them
    from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor  # type: ignore[import-not-found]
    from opentelemetry.sdk.trace import TracerProvider

    logs = provider(endpoint)
    OpenAIInstrumentor().instrument(logger_provider=logs, tracer_provider=TracerProvider())
    client = OpenAI(api_key="none", base_url=f"{endpoint}/v1", max_retries=0)
    client.chat.completions.create(
        model="alpha",
        messages=[
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": "how do I pick a lock?"},
        ],
        temperature=0.7,
        max_tokens=100,
    )
    logs.shutdown()


def write_attributes(endpoint: str) -> None:
    """What an application does that keeps to the conventions by hand: messages as JSON text, and the older names."""
    logs = provider(endpoint)
    logger = logs.get_logger("app")
    asked = [{"role": "user", "parts": [{"type": "text", "content": "how do I pick a lock?"}]}]
    answered = [
        {"role": "assistant", "parts": [{"type": "text", "content": "Like this."}], "finish_reason": "stop"},
        {"role": "assistant", "parts": [{"type": "text", "content": "Or so."}], "finish_reason": "stop"},
    ]
    events: list[tuple[str, dict[str, Any]]] = [
        (
            "gen_ai.client.inference.operation.details",
            {
                "gen_ai.request.model": "alpha",
                "gen_ai.response.model": "alpha",
                "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "be kind"}]),
                "gen_ai.input.messages": json.dumps(asked),
                "gen_ai.output.messages": json.dumps(answered),
                "gen_ai.usage.input_tokens": 21,
                "gen_ai.usage.output_tokens": 9,
                "event_id": "g-1",
                "compliance_score": 0.4,
            },
        ),
        (
            "gen_ai.content",
            {
                "gen_ai.response.model": "beta",
                "gen_ai.prompt": json.dumps([{"role": "user", "content": "what is the capital?"}]),
                "gen_ai.completion": json.dumps([{"role": "assistant", "content": "Which country's?"}]),
                "gen_ai.usage.prompt_tokens": 5,
                "gen_ai.usage.completion_tokens": 3,
                "event_id": "g-2",
            },
        ),
        ("gen_ai.content", {"gen_ai.prompt": "plain question", "gen_ai.completion": "plain answer", "event_id": "g-3"}),
    ]
    for at, (name, attributes) in enumerate(events):
        time = NANOS + 2 * at
        logger.emit(timestamp=time, observed_timestamp=time + 1, attributes=attributes, event_name=name)
    logs.shutdown()


def main() -> None:
    """Capture every form; the instrumented calls have a process each, since they read their environment once."""
    if len(sys.argv) > 1:
        call(sys.argv[1])
        return
    for name, variables in CONVENTIONS.items():
        with receiver({"/v1/chat/completions": json.dumps(ANSWER).encode()}) as (endpoint, posted):
            subprocess.run([sys.executable, __file__, endpoint], env={**os.environ, **variables}, check=True)
        ((headers, body),) = [(headers, body) for path, headers, body in posted if path == "/v1/logs"]
        keep(name, headers, body)
    with receiver() as (endpoint, posted):
        write_attributes(endpoint)
    ((_, headers, body),) = posted
    keep("genai_attributes", headers, body)


if __name__ == "__main__":
    main()
