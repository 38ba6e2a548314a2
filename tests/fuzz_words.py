"""What a fuzzer puts in places: names, texts, numbers and headers that have broken readers of messages before."""

from __future__ import annotations

from typing import Any

CONTENT_TYPES = [
    *(b"application/x-protobuf", b"application/json", b"application/x-ndjson", b"application/jsonl"),
    *(b"APPLICATION/JSON; charset=utf-8", b"text/plain", b"application/json\xff", b";", b"\x00", b"x" * 5000),
]
ENCODINGS = [b"gzip", b"zstd", b"identity", b"GZIP", b"x-gzip", b"", b"br", b"gzip, zstd", b"\xff\xfe", b"zstd" * 999]
OWNERS = [
    *(b"in:0:1:0", b"other.topic-1:2:30:7", b"in:0:1:99999999", b"in:0:1:1000000000", b"in:0:1", b"", b":::"),
    *(b"in:0:1:-1", b"in:0:1:0\n", b"in\n:0:1:0", b"in:0\x00:1:0", b"\xff:0:1:0", "in:0:1:٣".encode(), b"in:0:1:0:0:0"),
    *(b"a" * 10_000 + b":0:0:0", b"in:" + b"9" * 5000 + b":0:0", b"in:0:0:" + b"9" * 5000),
]
TRACEPARENTS = [
    b"00-5b8efff798038103d269b633813fc60c-eee19b7ec3c1b174-01",
    *(b"00-" + b"0" * 32 + b"-eee19b7ec3c1b174-01", b"\xff", b"00--", b"ff-\n"),
]
HEADERS = {
    "content-type": CONTENT_TYPES,
    "content-encoding": ENCODINGS,
    "flywheel-owner": OWNERS,
    "traceparent": TRACEPARENTS,
    "tracestate": [b"ot=rv:9b8233f7e3a151", b"\xff\n"],
    "naïve": [b"\xff"],
}

TEXTS = [
    *("", "0", "success", "policy_evaluation", "human_review", "cdd01ef066bc6cf2", "a\nb", "\x00", "\u2028", "é" * 40),
    *("{", "[", '{"a":', "{}", '{"event_id": 5}', '{"violations": ["v"]}', "NaN", "null", " {}", "\ufeff{}", "🙂"),
    *("9" * 25, "9" * 4299, "9" * 5000, "-1", "1e999", "0x10", "1_000", "5b8efff798038103d269b633813fc60c", "g" * 32),
    *("+" * 32, "_" * 16, "0" * 32, "x" * 300, "data:;base64,", "4539 1488 0343 6467", "someone@example.org"),
]
NUMBERS: list[Any] = [
    *(0, 1, -1, 0.5, 0.7999999999999999, 0.8, 0.95, -0.0, 1e308, -1e308, 5e-324, 1.0000000000000002),
    *(2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -(2**63), -(2**63) - 1, -(10**30)),
]
NAMES = [
    *("event_id", "event_type", "source", "status", "timestamp", "constitutional_hash", "compliance_score"),
    *("violations", "type", "severity", "trace_id", "span_id", "tracestate", "resource", "service.name", "event.name"),
    *("message", "body", "prompt", "messages", "routing_metadata", "event_classification", "acgs_version", "", "\n"),
    *("gen_ai.request.model", "gen_ai.response.model", "gen_ai.input.messages", "gen_ai.output.messages"),
    *("gen_ai.prompt", "gen_ai.completion", "gen_ai.usage.input_tokens", "role", "parts", "content", "text"),
]
OTLP_NAMES = [
    *("resourceLogs", "resource", "attributes", "scopeLogs", "logRecords", "body", "key", "value", "values"),
    *("stringValue", "intValue", "doubleValue", "boolValue", "bytesValue", "arrayValue", "kvlistValue", "eventName"),
    *("timeUnixNano", "observedTimeUnixNano", "traceId", "spanId", "severityNumber", "flags"),
]
RAW = [
    *("NaN", "Infinity", "-Infinity", "1e999", "-0", "01", ".5", "1" * 400, "tru", '"\\ud800"', '"\\udc00\\ud800"'),
    *('"\\u0000"', "'a'", "{,}", "[1,]", "/**/1", '"\x01"', "\\", "", "{}{}", '"\\x"', "\ufeff", "1 2"),
]
"""What no JSON writer writes, put in place of a value."""
