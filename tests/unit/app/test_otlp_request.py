"""OTLP/HTTP: decoding requests within limits, and the answers."""

from __future__ import annotations

import base64
import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from fuzz_cases import field_of
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

from app.web.otlp import (
    JSON,
    PROTOBUF,
    OtlpLimits,
    OtlpRejected,
    answer_type,
    error_body,
    parse_export_request,
    success_body,
)

LIMITS = OtlpLimits(max_body_bytes=20_000, max_decoded_bytes=100_000)
TRACE = "5b8efff798038103d269b633813fc60c"
SPAN = "eee19b7ec3c1b174"


def request_tree(**record: Any) -> dict[str, Any]:
    record = {"timeUnixNano": "1544712660300000000", "severityNumber": 10, "body": {"stringValue": "hello"}} | record
    return {"resourceLogs": [{"scopeLogs": [{"scope": {"name": "s"}, "logRecords": [record]}]}]}


def parse_json(tree: object) -> ExportLogsServiceRequest:
    return parse_export_request(json.dumps(tree).encode(), JSON, None, LIMITS)


def only_record(request: ExportLogsServiceRequest) -> Any:
    return request.resource_logs[0].scope_logs[0].log_records[0]


def protobuf_request(text: str = "hello") -> bytes:
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=2**63 + 5)
    record.body.string_value = text
    record.trace_id = bytes.fromhex(TRACE)
    data: bytes = request.SerializeToString()
    return data


def rejected(
    body: bytes, content_type: str = PROTOBUF, encoding: str | None = None, limits: OtlpLimits = LIMITS
) -> OtlpRejected:
    with pytest.raises(OtlpRejected) as caught:
        parse_export_request(body, content_type, encoding, limits)
    return caught.value


@pytest.mark.parametrize("encoding", [None, "", "identity", "gzip", "GZIP", "x-gzip"])
def test_protobuf_plain_and_gzip(encoding: str | None) -> None:
    body = protobuf_request()
    sent = gzip.compress(body) if "gzip" in (encoding or "").lower() else body
    request = parse_export_request(sent, "Application/X-Protobuf", encoding, LIMITS)
    assert request.SerializeToString() == body


def test_json_ids_are_hex_in_both_cases_and_integers_exact() -> None:
    attributes = [
        {"key": "n", "value": {"intValue": "9007199254740993"}},
        {"key": "m", "value": {"intValue": -5}},
        {"key": "b", "value": {"bytesValue": base64.b64encode(b"\x00\xff").decode()}},
        {"key": "traceId", "value": {"stringValue": TRACE}},
    ]
    for trace, span in ((TRACE, SPAN), (TRACE.upper(), SPAN.upper())):
        record = only_record(parse_json(request_tree(traceId=trace, spanId=span, attributes=attributes)))
        assert (record.trace_id.hex(), record.span_id.hex()) == (TRACE, SPAN)
        assert record.time_unix_nano == 1544712660300000000
        assert [record.attributes[0].value.int_value, record.attributes[1].value.int_value] == [9007199254740993, -5]
        assert record.attributes[2].value.bytes_value == b"\x00\xff"
        assert record.attributes[3].value.string_value == TRACE


def test_json_with_snake_case_names_unknown_fields_charset_and_empty_ids() -> None:
    record = {"trace_id": TRACE, "spanId": "", "time_unix_nano": 7, "body": {"string_value": "x"}, "future": {"a": 1}}
    tree = {"resource_logs": [{"scope_logs": [{"log_records": [record]}], "schemaUrl": "u"}], "later": []}
    parsed = parse_export_request(json.dumps(tree).encode(), "application/json; charset=UTF-8", None, LIMITS)
    assert only_record(parsed).trace_id.hex() == TRACE
    assert only_record(parsed).span_id == b""
    assert only_record(parsed).body.string_value == "x"


def test_the_published_example_is_read(test_data: Path) -> None:
    request = parse_export_request((test_data / "otlp_logs.json").read_bytes(), JSON, None, LIMITS)
    record = only_record(request)
    assert (record.trace_id.hex(), record.span_id.hex()) == (TRACE, SPAN)
    assert record.body.string_value == "Example log record"
    assert {a.key: a.value.WhichOneof("value") for a in record.attributes} == {
        "string.attribute": "string_value",
        "boolean.attribute": "bool_value",
        "int.attribute": "int_value",
        "double.attribute": "double_value",
        "array.attribute": "array_value",
        "map.attribute": "kvlist_value",
    }


def test_an_empty_request_is_a_request() -> None:
    assert len(parse_export_request(b"", PROTOBUF, None, LIMITS).resource_logs) == 0
    assert len(parse_json({}).resource_logs) == 0


@pytest.mark.parametrize(
    "tree",
    [
        [],
        7,
        "x",
        None,
        {"resourceLogs": 3},
        {"resourceLogs": [{"scopeLogs": "x"}]},
        {"resourceLogs": [3]},
        request_tree(traceId="zz"),
        request_tree(traceId=TRACE[:-2]),
        request_tree(spanId=TRACE),
        request_tree(traceId=[1]),
        request_tree(timeUnixNano=-1),
        request_tree(timeUnixNano="soon"),
        request_tree(body={"intValue": 2**70}),
        request_tree(body=7),
    ],
)
def test_json_of_another_shape_is_400(tree: object) -> None:
    assert rejected(json.dumps(tree).encode(), JSON).status == 400


def test_damaged_bodies_are_400_and_quote_no_text() -> None:
    assert rejected(b"\xff\xff\xff").status == 400
    assert rejected(b'{"resourceLogs": [').status == 400
    assert rejected(b'{"resourceLogs": [', JSON).status == 400
    assert rejected(b"no gzip", PROTOBUF, "gzip").status == 400
    assert rejected(gzip.compress(protobuf_request())[:-9], PROTOBUF, "gzip").status == 400
    assert rejected(gzip.compress(protobuf_request()) + b"garbage", PROTOBUF, "gzip").status == 400
    tree = request_tree(timeUnixNano="my number is 123-45-6789")
    assert "123-45" not in rejected(json.dumps(tree).encode(), JSON).message


def test_deep_json_is_400() -> None:
    for depth in (150, 800, 9000):
        body = b'{"kvlistValue":{"values":[{"key":"k","value":' * depth + b"{}" + b"}]}}" * depth
        whole = b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":' + body + b"}]}]}]}"
        assert rejected(whole, JSON, limits=OtlpLimits(max_body_bytes=10**6, max_decoded_bytes=10**6)).status == 400


@pytest.mark.parametrize("depth", [60, 300, 3000])
def test_deep_protobuf_is_400(depth: int) -> None:
    value = field_of(1, b"x")
    for _ in range(depth):
        value = field_of(5, field_of(1, value))  # AnyValue.array_value.values
    body = field_of(1, field_of(2, field_of(2, field_of(5, value))))
    assert rejected(body, limits=OtlpLimits(max_body_bytes=10**6, max_decoded_bytes=10**6)).status == 400


def test_ids_of_another_size_are_dropped_and_others_kept() -> None:
    request = ExportLogsServiceRequest()
    records = request.resource_logs.add().scope_logs.add().log_records
    for trace, span in ((b"", b""), (b"t" * 16, b"s" * 8), (b"t" * 15, b"s" * 9), (b"somebody@example.com", b"s" * 8)):
        records.add(trace_id=trace, span_id=span)
    parsed = parse_export_request(request.SerializeToString(), PROTOBUF, None, LIMITS)
    found = [(record.trace_id, record.span_id) for record in parsed.resource_logs[0].scope_logs[0].log_records]
    assert found == [(b"", b""), (b"t" * 16, b"s" * 8), (b"", b""), (b"", b"s" * 8)]


@pytest.mark.parametrize("name", ["traceId", "span_id"])
def test_what_stands_for_an_id_is_not_quoted(name: str) -> None:
    refusal = rejected(json.dumps(request_tree(**{name: "somebody@example.com"})).encode(), JSON)
    assert name in refusal.message
    assert "somebody" not in refusal.message


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/xml", "application/json; charset=latin-1", "application/grpc"]
)
def test_other_content_types_are_415(content_type: str) -> None:
    assert rejected(b"{}", content_type).status == 415


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip"])
def test_other_encodings_are_415(encoding: str) -> None:
    assert rejected(b"{}", JSON, encoding).status == 415


def test_sizes_are_bounded_before_and_after_decompression() -> None:
    exact = OtlpLimits(max_body_bytes=len(protobuf_request()), max_decoded_bytes=len(protobuf_request()))
    assert parse_export_request(protobuf_request(), PROTOBUF, None, exact)
    assert rejected(protobuf_request("hello!"), limits=exact).status == 413
    large = protobuf_request("x" * 90_000)
    assert parse_export_request(gzip.compress(large), PROTOBUF, "gzip", LIMITS)
    assert rejected(gzip.compress(protobuf_request("x" * 100_000)), PROTOBUF, "gzip").status == 413


def test_a_decompression_bomb_takes_no_memory() -> None:
    bomb = gzip.compress(b"\0" * 15_000_000, 9)
    assert len(bomb) < LIMITS.max_body_bytes
    tracemalloc.start()
    try:
        assert rejected(bomb, PROTOBUF, "gzip").status == 413
        assert rejected(gzip.compress(b"x" * 60_000) * 2, PROTOBUF, "gzip").status == 413
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


def test_gzip_members_are_joined_but_not_by_the_thousand() -> None:
    body = protobuf_request()
    assert (
        parse_export_request(
            gzip.compress(body[:9]) + gzip.compress(body[9:]), PROTOBUF, "gzip", LIMITS
        ).SerializeToString()
        == body
    )
    assert rejected(gzip.compress(b"") * 900, PROTOBUF, "gzip").status == 400


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([PROTOBUF, JSON]), st.sampled_from([None, "gzip"]))
def test_any_body_is_a_request_or_rejected(body: bytes, content_type: str, encoding: str | None) -> None:
    statuses: set[int] = set()
    for sent in (body, gzip.compress(body)):
        try:
            assert isinstance(parse_export_request(sent, content_type, encoding, LIMITS), ExportLogsServiceRequest)
        except OtlpRejected as error:
            statuses.add(error.status)
    assert statuses <= {400}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "resourceLogs",
                    "scopeLogs",
                    "logRecords",
                    "traceId",
                    "body",
                    "stringValue",
                    "attributes",
                    "key",
                    "value",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None)
@given(JSON_VALUES)
def test_any_json_is_a_request_or_rejected(value: object) -> None:
    statuses: set[int] = set()
    for tree in (value, {"resourceLogs": [{"scopeLogs": [{"logRecords": [value]}]}]}):
        try:
            parse_json(tree)
        except OtlpRejected as error:
            statuses.add(error.status)
    assert statuses <= {400}


def test_answers_in_both_encodings() -> None:
    assert success_body(PROTOBUF) == b""
    assert success_body(JSON) == b"{}"
    partial = ExportLogsServiceResponse.FromString(success_body(PROTOBUF, 3, "too old"))
    assert (partial.partial_success.rejected_log_records, partial.partial_success.error_message) == (3, "too old")
    assert json.loads(success_body(JSON, 3, "too old")) == {
        "partialSuccess": {"rejectedLogRecords": "3", "errorMessage": "too old"}
    }
    assert json.loads(success_body(JSON, message="slow")) == {"partialSuccess": {"errorMessage": "slow"}}


@pytest.mark.parametrize(("status", "code"), [(400, 3), (401, 16), (413, 3), (415, 3), (429, 8), (503, 14), (418, 2)])
def test_errors_are_rpc_statuses(status: int, code: int) -> None:
    decoded = Status.FromString(error_body(status, "why", PROTOBUF))
    assert (decoded.code, decoded.message) == (code, "why")
    assert json.loads(error_body(status, "why", JSON)) == {"code": code, "message": "why"}


def test_the_answer_has_the_type_of_the_request() -> None:
    assert answer_type("application/x-protobuf") == PROTOBUF
    assert answer_type("application/json; charset=utf-8") == JSON
    assert answer_type("text/plain") == answer_type(None) == JSON


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="max_decoded_bytes"):
        OtlpLimits(max_body_bytes=10, max_decoded_bytes=9)


def test_retry_after_is_carried() -> None:
    error = OtlpRejected(503, "Kafka is away", retry_after=5)
    assert (error.status, error.message, error.retry_after) == (503, "Kafka is away", 5)
