"""Which trace context a routed record carries on."""

from __future__ import annotations

from typing import Any

import pytest

from agents.routing.identity import identify
from agents.routing.message import DecodedRecord, InboundMessage
from agents.routing.trace import ContextOnly, message_context, record_context

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
OWN = f"00-{TRACE}-{SPAN}-01".encode()
OTHER = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def record(event: dict[str, Any], headers: dict[str, bytes] | None = None) -> DecodedRecord:
    return DecodedRecord(InboundMessage("in", 0, 1, b"", None, headers or {}), 0, event, "service")


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"trace_id": TRACE, "span_id": SPAN}, OWN),
        ({"trace_id": TRACE.upper(), "span_id": SPAN.upper()}, OWN),
        ({"trace_id": TRACE, "span_id": SPAN, "trace_flags": 1}, OWN),
        ({"trace_id": TRACE, "span_id": SPAN, "trace_flags": 0}, OWN[:-2] + b"00"),
        ({"trace_id": TRACE, "span_id": SPAN, "trace_flags": "00"}, OWN[:-2] + b"00"),
        ({"trace_id": TRACE, "span_id": SPAN, "trace_flags": ["odd"]}, OWN),
    ],
)
def test_a_record_carries_on_its_own_context(event: dict[str, Any], expected: bytes) -> None:
    held = record(event, {"traceparent": OTHER})
    assert record_context(held) == expected
    assert ContextOnly().header(held, identify(event, "service")) == expected


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"trace_id": TRACE},
        {"span_id": SPAN},
        {"trace_id": "0" * 32, "span_id": SPAN},
        {"trace_id": TRACE, "span_id": "0" * 16},
        {"trace_id": TRACE[:-1], "span_id": SPAN},
        {"trace_id": TRACE[:-1] + "g", "span_id": SPAN},
        {"trace_id": TRACE, "span_id": SPAN + "\n"},
        {"trace_id": TRACE, "span_id": 1234567890123456},
        {"trace_id": [TRACE], "span_id": None},
        {"trace_id": f"{TRACE}-{SPAN}", "span_id": ""},
    ],
)
def test_a_record_without_one_carries_on_its_messages_or_none(event: dict[str, Any]) -> None:
    assert record_context(record(event)) is None
    assert record_context(record(event, {"traceparent": OTHER})) == OTHER


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xff\xfe",
        OTHER[:-1],
        OTHER + b"-more",
        OTHER.upper(),
        b"ff" + OTHER[2:],
        b"00-" + b"0" * 32 + OTHER[35:],
        OTHER[:36] + b"0" * 16 + b"-01",
        OTHER + b"\r\nanother: header",
    ],
)
def test_what_is_no_traceparent_is_not_carried_on(header: bytes) -> None:
    assert message_context({"traceparent": header}) is None
    assert record_context(record({}, {"traceparent": header})) is None
