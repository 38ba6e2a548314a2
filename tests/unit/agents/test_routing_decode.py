"""Every input form, golden; every bound and fault, with its reason."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, LogsData, ResourceLogs, ScopeLogs

from agents.routing.bounds import DecodeLimits
from agents.routing.decode import decode
from agents.routing.message import DecodedRecord, InboundMessage, Reason, Rejected

LIMITS = DecodeLimits()
TRACE, SPAN = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174"


def message(value: bytes | None, **headers: str) -> InboundMessage:
    pairs = {name.replace("_", "-"): text.encode() for name, text in headers.items()}
    return InboundMessage("otel-audit-events", 2, 7, value, key=b"k", headers=pairs)


def events(value: bytes | None, limits: DecodeLimits = LIMITS, **headers: str) -> list[dict[str, Any]]:
    out = decode(message(value, **headers), limits)
    assert all(isinstance(item, DecodedRecord) for item in out), out
    return [item.event for item in out if isinstance(item, DecodedRecord)]


def only_rejection(value: bytes | None, limits: DecodeLimits = LIMITS, **headers: str) -> Rejected:
    (item,) = decode(message(value, **headers), limits)
    assert isinstance(item, Rejected)
    return item


def otlp(*records: dict[str, Any], service: str | None = "assistant") -> dict[str, Any]:
    attributes = [{"key": "service.name", "value": {"stringValue": service}}] if service else []
    return {"resourceLogs": [{"resource": {"attributes": attributes}, "scopeLogs": [{"logRecords": list(records)}]}]}


def text_body(event: dict[str, Any]) -> dict[str, Any]:
    return {"body": {"stringValue": orjson.dumps(event).decode()}}


def protobuf(request: dict[str, Any]) -> bytes:
    # ParseDict takes bytes fields as base64, OTLP's JSON mapping as hex: ids are set on the message itself.
    return bytes(ParseDict(request, LogsData()).SerializeToString())


EVENT = {"event_id": "e1", "compliance_score": 0.5, "prompt": "héllo"}


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (orjson.dumps(EVENT), {}),
        (b"\n  " + orjson.dumps(EVENT), {}),
        (b"\xef\xbb\xbf" + orjson.dumps(EVENT), {}),
        (orjson.dumps(EVENT, option=orjson.OPT_INDENT_2), {}),
        (orjson.dumps(EVENT), {"content_type": "application/json; charset=utf-8"}),
        (gzip.compress(orjson.dumps(EVENT), mtime=0), {"content_encoding": "gzip"}),
        (
            gzip.compress(orjson.dumps(EVENT)[:9], mtime=0) + gzip.compress(orjson.dumps(EVENT)[9:], mtime=0),
            {"content_encoding": "GZIP"},
        ),
        (zstandard.compress(orjson.dumps(EVENT)), {"content_encoding": "zstd"}),
        (orjson.dumps(EVENT) + b"\n", {"content_type": "application/x-ndjson"}),
    ],
)
def test_one_event_in_every_wrapping(value: bytes, headers: dict[str, str]) -> None:
    assert events(value, LIMITS, **headers) == [EVENT]


def test_a_single_event_keeps_its_message_key_and_others_do_not() -> None:
    (single,) = decode(message(orjson.dumps(EVENT)), LIMITS)
    (listed,) = decode(message(orjson.dumps([EVENT])), LIMITS)
    assert isinstance(single, DecodedRecord)
    assert isinstance(listed, DecodedRecord)
    assert (single.single, listed.single) == (True, False)


@pytest.mark.parametrize("joint", [b"\n", b"\r\n", b"\n\n"])
def test_lines_without_a_header(joint: bytes) -> None:
    lines = [orjson.dumps({"event_id": str(number)}) for number in range(3)]
    assert [event["event_id"] for event in events(joint.join(lines))] == ["0", "1", "2"]


def test_a_bad_line_is_rejected_alone_and_keeps_its_place() -> None:
    out = decode(message(b'{"event_id": "a"}\n{broken\n{"event_id": "c"}'), LIMITS)
    assert [type(item) for item in out] == [DecodedRecord, Rejected, DecodedRecord]
    bad = out[1]
    assert isinstance(bad, Rejected)
    assert (bad.index, bad.reason, bad.value) == (1, Reason.INVALID_JSON, b"{broken")
    assert bad.message.owner(out[2].index) == "otel-audit-events:2:7:2"


def test_an_array_with_something_else_in_it() -> None:
    out = decode(message(b'[{"event_id": "a"}, 5, {"event_id": "c"}]'), LIMITS)
    assert [item.index for item in out] == [0, 1, 2]
    assert isinstance(out[1], Rejected)
    assert (out[1].reason, out[1].value) == (Reason.NOT_AN_OBJECT, b"5")


@pytest.mark.parametrize("as_protobuf", [True, False])
def test_text_body_over_attributes_with_resource(as_protobuf: bool) -> None:
    record = text_body(EVENT) | {
        "timeUnixNano": "1544712660300000001",
        "attributes": [
            {"key": "event_id", "value": {"stringValue": "from attributes"}},
            {"key": "workload_id", "value": {"stringValue": "w1"}},
        ],
    }
    request = otlp(record)
    value = protobuf(request) if as_protobuf else orjson.dumps(request)
    expected = EVENT | {
        "workload_id": "w1",
        "resource": {"service.name": "assistant"},
        "timestamp": "2018-12-13T14:51:00.300000001Z",
    }
    assert events(value) == [expected]
    (item,) = decode(message(value), LIMITS)
    assert isinstance(item, DecodedRecord)
    assert item.service == "assistant"


def test_protobuf_map_body_with_every_value_kind_and_ids() -> None:
    def value(**fields: Any) -> AnyValue:
        return AnyValue(**fields)

    body = AnyValue()
    pairs = body.kvlist_value.values
    pairs.add(key="text", value=value(string_value="t"))
    pairs.add(key="int", value=value(int_value=2**62))
    pairs.add(key="real", value=value(double_value=0.25))
    pairs.add(key="yes", value=value(bool_value=True))
    pairs.add(key="raw", value=value(bytes_value=b"\x00\xff"))
    pairs.add(key="none", value=AnyValue())
    array = AnyValue()
    array.array_value.values.append(value(string_value="a"))
    array.array_value.values.add().kvlist_value.values.add(key="type", value=value(string_value="b"))
    pairs.add(key="violations", value=array)
    record = LogRecord(body=body, trace_id=bytes.fromhex(TRACE), span_id=bytes.fromhex(SPAN), event_name="audit.call")
    logs = LogsData(resource_logs=[ResourceLogs(scope_logs=[ScopeLogs(log_records=[record])])])
    assert events(logs.SerializeToString()) == [
        {
            "text": "t",
            "int": 2**62,
            "real": 0.25,
            "yes": True,
            "raw": "AP8=",
            "none": None,
            "violations": ["a", {"type": "b"}],
            "event_type": "audit.call",
            "trace_id": TRACE,
            "span_id": SPAN,
        }
    ]


def test_attributes_alone_a_plain_text_and_zero_ids() -> None:
    attributes = [KeyValue(key="event.name", value=AnyValue(string_value="policy_evaluation"))]
    record = LogRecord(body=AnyValue(string_value="{not json"), attributes=attributes, trace_id=bytes(16))
    logs = LogsData(resource_logs=[ResourceLogs(scope_logs=[ScopeLogs(log_records=[record])])])
    assert events(logs.SerializeToString()) == [
        {"message": "{not json", "event.name": "policy_evaluation", "event_type": "policy_evaluation"}
    ]


def test_several_services_in_one_message() -> None:
    first, second = otlp(text_body({"event_id": "a"})), otlp(text_body({"event_id": "b"}), service="other")
    request = {"resourceLogs": first["resourceLogs"] + second["resourceLogs"]}
    out = decode(message(protobuf(request)), LIMITS)
    assert [item.service for item in out if isinstance(item, DecodedRecord)] == ["assistant", "other"]


@pytest.mark.parametrize(
    ("event", "service"),
    [
        ({"resource": {"service.name": "r"}, "service.name": "e"}, "r"),
        ({"service.name": "e"}, "e"),
        ({"service.name": 5}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_the_service_of_a_plain_event(event: dict[str, Any], service: str) -> None:
    (item,) = decode(message(orjson.dumps(event)), LIMITS)
    assert isinstance(item, DecodedRecord)
    assert item.service == service


def test_the_published_otlp_json_example(test_data: Path) -> None:
    assert events((test_data / "otlp_logs.json").read_bytes()) == [
        {
            "message": "Example log record",
            "string.attribute": "some string",
            "boolean.attribute": True,
            "int.attribute": 10,
            "double.attribute": 637.704,
            "array.attribute": ["many", "values"],
            "map.attribute": {"some.map.key": "some value"},
            "resource": {"service.name": "my.service"},
            "trace_id": TRACE,
            "span_id": SPAN,
            "timestamp": "2018-12-13T14:51:00.300000000Z",
        }
    ]


@pytest.mark.parametrize("asked", ["gen_ai.input.messages", "gen_ai.prompt"])
def test_genai_attributes_fill_the_call(asked: str) -> None:
    asked_messages = [
        {"role": "system", "parts": [{"type": "text", "content": "be kind"}]},
        {"role": "user", "parts": [{"type": "text", "content": "hi"}, {"type": "text", "content": "there"}]},
    ]
    answered = [{"role": "assistant", "parts": [{"type": "text", "content": "hello"}], "finish_reason": "stop"}]
    attributes = {
        "gen_ai.request.model": {"stringValue": "m-1"},
        "gen_ai.response.model": {"stringValue": "m-1-2026"},
        asked: {"stringValue": orjson.dumps(asked_messages).decode()},
        "gen_ai.output.messages": {"stringValue": orjson.dumps(answered).decode()},
        "gen_ai.usage.input_tokens": {"intValue": "12"},
        "gen_ai.usage.output_tokens": {"intValue": 34},
    }
    record = {"attributes": [{"key": key, "value": value} for key, value in attributes.items()]}
    (event,) = events(orjson.dumps(otlp(record)))
    assert {name: event[name] for name in ("model_id", "model_version", "prompt", "response")} == {
        "model_id": "m-1",
        "model_version": "m-1-2026",
        "prompt": "hi\nthere",
        "response": "hello",
    }
    assert (event["input_tokens"], event["output_tokens"]) == (12, 34)
    assert event["messages"][0] == {"role": "system", "content": "be kind"}
    assert event["gen_ai.request.model"] == "m-1"


def test_genai_older_names_and_the_event_wins() -> None:
    event = {
        "gen_ai.response.model": "m",
        "gen_ai.prompt": "plain question",
        "gen_ai.completion": "plain answer",
        "gen_ai.usage.prompt_tokens": 3,
        "gen_ai.usage.completion_tokens": 4,
        "response": "the event's own",
    }
    (out,) = events(orjson.dumps(event))
    assert (out["model_id"], out["prompt"], out["response"]) == ("m", "plain question", "the event's own")
    assert (out["input_tokens"], out["output_tokens"]) == (3, 4)
    assert "model_version" not in out


def deep(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize(
    ("value", "reason", "limits", "headers"),
    [
        (None, Reason.EMPTY_MESSAGE, LIMITS, {}),
        (b"", Reason.EMPTY_MESSAGE, LIMITS, {}),
        (b"x" * 11, Reason.MESSAGE_TOO_LARGE, DecodeLimits(max_message_bytes=10), {}),
        (b"{", Reason.INVALID_JSON, LIMITS, {}),
        (b'{"a": NaN}', Reason.INVALID_JSON, LIMITS, {}),
        (b'{"a": "\xff"}', Reason.INVALID_UTF8, LIMITS, {}),
        (b'"text"', Reason.INVALID_PROTOBUF, LIMITS, {}),
        (b'"text"', Reason.NOT_AN_OBJECT, LIMITS, {"content_type": "application/json"}),
        (b"\x0a\xff", Reason.INVALID_PROTOBUF, LIMITS, {}),
        (b"{}", Reason.INVALID_PROTOBUF, LIMITS, {"content_type": "application/x-protobuf"}),
        (b'{"resourceLogs": [5]}', Reason.INVALID_OTLP, LIMITS, {}),
        (b"[{},{},{}]", Reason.TOO_MANY_RECORDS, DecodeLimits(max_records=2), {}),
        (b"{}\n{}\n{}", Reason.TOO_MANY_RECORDS, DecodeLimits(max_records=2), {}),
        (orjson.dumps(otlp({}, {}, {})), Reason.TOO_MANY_RECORDS, DecodeLimits(max_records=2), {}),
        (protobuf(otlp({}, {}, {})), Reason.TOO_MANY_RECORDS, DecodeLimits(max_records=2), {}),
        (deep(33), Reason.NESTING_TOO_DEEP, LIMITS, {}),
        (deep(5000), Reason.INVALID_JSON, LIMITS, {}),
        (orjson.dumps({"a": "x" * 11}), Reason.STRING_TOO_LONG, DecodeLimits(max_string_chars=10), {}),
        (orjson.dumps({"x" * 11: 1}), Reason.STRING_TOO_LONG, DecodeLimits(max_string_chars=10), {}),
        (b"data", Reason.UNSUPPORTED_ENCODING, LIMITS, {"content_encoding": "lz4"}),
        (b"data", Reason.CORRUPT_COMPRESSION, LIMITS, {"content_encoding": "gzip"}),
        (gzip.compress(b"data", mtime=0)[:-4], Reason.CORRUPT_COMPRESSION, LIMITS, {"content_encoding": "gzip"}),
        (b"data", Reason.CORRUPT_COMPRESSION, LIMITS, {"content_encoding": "zstd"}),
        (
            gzip.compress(bytes(10**6), mtime=0),
            Reason.DECOMPRESSED_TOO_LARGE,
            DecodeLimits(max_decompressed_bytes=1000),
            {"content_encoding": "gzip"},
        ),
        (
            zstandard.compress(bytes(10**6)),
            Reason.DECOMPRESSED_TOO_LARGE,
            DecodeLimits(max_decompressed_bytes=1000),
            {"content_encoding": "zstd"},
        ),
    ],
)
def test_what_cannot_be_read_is_one_rejection_with_the_original(
    value: bytes | None, reason: Reason, limits: DecodeLimits, headers: dict[str, str]
) -> None:
    rejected = only_rejection(value, limits, **headers)
    assert rejected.reason is reason
    assert rejected.index == 0
    if reason not in (Reason.NESTING_TOO_DEEP, Reason.STRING_TOO_LONG, Reason.NOT_AN_OBJECT):
        assert rejected.value == value


def test_depth_at_the_bound_is_accepted() -> None:
    assert len(events(deep(32))) == 1
    assert len(events(b"[" + deep(32) + b"]")) == 1


@pytest.mark.parametrize("as_protobuf", [True, False])
def test_a_log_record_over_a_bound_is_rejected_alone_and_can_be_read_again(as_protobuf: bool) -> None:
    body: dict[str, Any] = {"stringValue": "x"}
    for _ in range(10):
        body = {"kvlistValue": {"values": [{"key": "a", "value": body}]}}
    request = otlp(text_body(EVENT), {"body": body}, text_body(EVENT))
    value = protobuf(request) if as_protobuf else orjson.dumps(request)
    out = decode(message(value), DecodeLimits(max_depth=8))
    assert [type(item) for item in out] == [DecodedRecord, Rejected, DecodedRecord]
    rejected = out[1]
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.index) == (Reason.NESTING_TOO_DEEP, 1)
    (again,) = decode(message(rejected.value), LIMITS)
    assert isinstance(again, DecodedRecord)
    assert again.service == "assistant"


def test_a_misshapen_json_log_record_is_rejected_alone() -> None:
    out = decode(message(orjson.dumps(otlp({"body": {"intValue": "many"}}, text_body(EVENT)))), LIMITS)
    assert [type(item) for item in out] == [Rejected, DecodedRecord]
    assert isinstance(out[0], Rejected)
    assert out[0].reason is Reason.INVALID_OTLP


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(
    st.binary(max_size=200), st.sampled_from(["", "application/json", "application/x-ndjson", "application/x-protobuf"])
)
def test_no_bytes_raise(data: bytes, kind: str) -> None:
    for value in (data, b"\n" + data, b"{" + data, b'{"resourceLogs":[' + data + b"]}"):
        for item in decode(message(value, content_type=kind), LIMITS):
            assert isinstance(item, DecodedRecord | Rejected)


@given(JSON)
def test_no_json_raises_as_an_event_or_inside_otlp(value: Any) -> None:
    for document in (value, {"resourceLogs": value}, otlp({"body": value}), otlp({"attributes": value}), otlp(value)):
        for item in decode(message(orjson.dumps(document)), LIMITS):
            assert isinstance(item, DecodedRecord | Rejected)
