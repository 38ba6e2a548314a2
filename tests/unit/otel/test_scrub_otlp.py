"""OTLP requests: every hiding place, and what survives."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from otel.scrub import Scrubber
from otel.subject import SubjectTokenizer
from otel.table import load_table

TOKENS = SubjectTokenizer(b"k" * 32)
SCRUBBER = Scrubber(load_table(), TOKENS)
TRACE_ID = b"4111111111111111"
SPAN_ID = b"\n@a.b.co"

Plant = Callable[[ExportLogsServiceRequest, str], object]


def request_with_record() -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    resource_logs = request.resource_logs.add()
    resource_logs.resource.attributes.add(key="service.name", value=AnyValue(string_value="checkout"))
    scope_logs = resource_logs.scope_logs.add()
    scope_logs.scope.name = "audit"
    scope_logs.scope.version = "1.2.3.4"
    record = scope_logs.log_records.add(
        time_unix_nano=1763805600123456789,
        observed_time_unix_nano=1763805600123456790,
        trace_id=TRACE_ID,
        span_id=SPAN_ID,
        severity_number=9,
        event_name="audit",
    )
    record.body.string_value = "all is well"
    record.attributes.add(key="event_id", value=AnyValue(string_value="bob@example.com"))
    record.attributes.add(key="n", value=AnyValue(int_value=4111111111111111))
    record.attributes.add(key="score", value=AnyValue(double_value=0.4111111111111111))
    return request


def record_of(request: ExportLogsServiceRequest) -> LogRecord:
    record: LogRecord = request.resource_logs[0].scope_logs[0].log_records[0]
    return record


def text_value(text: str) -> AnyValue:
    return AnyValue(string_value=text)


def body_map(request: ExportLogsServiceRequest, text: str) -> None:
    inner = record_of(request).body.kvlist_value.values.add(key="outer").value.kvlist_value.values.add(key="inner")
    inner.value.array_value.values.append(text_value(text))


def body_list(request: ExportLogsServiceRequest, text: str) -> None:
    record_of(request).body.array_value.values.append(text_value(text))


def attribute_map(request: ExportLogsServiceRequest, text: str) -> None:
    pair = record_of(request).attributes.add(key="m")
    pair.value.kvlist_value.values.add(key="deep", value=text_value(text))


def attribute_list(request: ExportLogsServiceRequest, text: str) -> None:
    record_of(request).attributes.add(key="l").value.array_value.values.extend([text_value("x"), text_value(text)])


def resource_attribute(request: ExportLogsServiceRequest, text: str) -> None:
    request.resource_logs[0].resource.attributes.add(key="host", value=text_value(text))


def scope_attribute(request: ExportLogsServiceRequest, text: str) -> None:
    request.resource_logs[0].scope_logs[0].scope.attributes.add(key="host", value=text_value(text))


def set_body(request: ExportLogsServiceRequest, text: str) -> None:
    record_of(request).body.string_value = text


def resource_map(request: ExportLogsServiceRequest, text: str) -> None:
    pair = request.resource_logs[0].resource.attributes.add(key="m")
    pair.value.kvlist_value.values.add(key="l").value.array_value.values.append(text_value(text))


def unknown_field(request: ExportLogsServiceRequest, text: str) -> None:
    """A field of a later version of OTLP; `[KIND]` stands in the body, as it is dropped and not masked."""
    record = record_of(request)
    record.MergeFromString(b"\xca\x01" + bytes([len(text)]) + text.encode())
    set_body(request, text)


def entity(request: ExportLogsServiceRequest, **fields: Any) -> None:
    request.resource_logs[0].resource.entity_refs.add(**fields)


def attribute_bytes(request: ExportLogsServiceRequest, text: str) -> None:
    record_of(request).attributes.add(key="b").value.bytes_value = b"\xff\x80 " + text.encode() + b"\n\xfe"


PLACES: dict[str, Plant] = {
    "body text": set_body,
    "body text of 200 bytes": lambda request, text: set_body(request, text + " " * (200 - len(text))),
    "body map": body_map,
    "body list": body_list,
    "body bytes": lambda request, text: setattr(record_of(request).body, "bytes_value", text.encode()),
    "body JSON text": lambda request, text: set_body(request, json.dumps({"a": [text], "n": 2**70})),
    "body JSON text after a line break": lambda request, text: set_body(request, json.dumps({"a": f"x\n{text}"})),
    "attribute": lambda request, text: record_of(request).attributes.add(key="a", value=text_value(text)),
    "attribute map": attribute_map,
    "attribute list": attribute_list,
    "attribute JSON text": lambda request, text: record_of(request).attributes.add(
        key="a", value=text_value(json.dumps([text]))
    ),
    "attribute bytes that are no text": attribute_bytes,
    "attribute JSON text in JSON text": lambda request, text: record_of(request).attributes.add(
        key="a", value=text_value(json.dumps({"b": json.dumps([f"x\n{text}"])}))
    ),
    "body map key": lambda request, text: record_of(request).body.kvlist_value.values.add(key=text),
    "field of a later version": unknown_field,
    "resource attribute map": resource_map,
    "resource attribute key": lambda request, text: request.resource_logs[0].resource.attributes.add(key=text),
    "scope attribute key": lambda request, text: request.resource_logs[0].scope_logs[0].scope.attributes.add(key=text),
    "entity schema url": lambda request, text: entity(request, schema_url=text),
    "entity type": lambda request, text: entity(request, type=text),
    "entity id key": lambda request, text: entity(request, id_keys=["host.id", text]),
    "entity description key": lambda request, text: entity(request, description_keys=[text]),
    "attribute key": lambda request, text: record_of(request).attributes.add(key=text, value=text_value("x")),
    "resource attribute": resource_attribute,
    "scope attribute": scope_attribute,
    "scope name": lambda request, text: setattr(request.resource_logs[0].scope_logs[0].scope, "name", text),
    "event name": lambda request, text: setattr(record_of(request), "event_name", text),
    "severity text": lambda request, text: setattr(record_of(request), "severity_text", text),
    "resource schema url": lambda request, text: setattr(request.resource_logs[0], "schema_url", text),
    "scope schema url": lambda request, text: setattr(request.resource_logs[0].scope_logs[0], "schema_url", text),
}
KINDS = {
    "EMAIL": "ada.lovelace@example.com",
    "US_SSN": "123-45-6789",
    "CREDIT_CARD": "4111111111111111",
    "IPV4": "203.0.113.77",
    "IPV6": "2001:db8::8a2e:370:7334",
    "PHONE": "+44 20 7946 0958",
    "IBAN": "GB82WEST12345698765432",
    "SECRET": "password=hunter2",
}


def test_a_clean_request_is_not_touched() -> None:
    request = request_with_record()
    before = request.SerializeToString()
    assert SCRUBBER.scrub_otlp(request) == {}
    assert request.SerializeToString() == before


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_masked_in_every_place(kind: str, place: str) -> None:
    request = request_with_record()
    PLACES[place](request, KINDS[kind])
    counts = SCRUBBER.scrub_otlp(request)
    record = record_of(request)
    assert (record.trace_id, record.span_id, record.attributes[0].value.string_value) == (
        TRACE_ID,
        SPAN_ID,
        "bob@example.com",
    )
    assert record.attributes[1].value.int_value == 4111111111111111
    assert record.attributes[2].value.double_value == 0.4111111111111111
    assert record.time_unix_nano == 1763805600123456789
    assert request.resource_logs[0].scope_logs[0].scope.version == "1.2.3.4"
    record.ClearField("trace_id")
    left = request.SerializeToString().decode("latin-1")
    assert counts == {kind: 1}
    assert f"[{kind}]" in left
    assert KINDS[kind].partition("=")[2] or KINDS[kind] not in left
    assert "hunter2" not in left
    assert SCRUBBER.scrub_otlp(request) == {}


@pytest.mark.parametrize("length", range(28, 60))
def test_a_length_byte_that_looks_like_a_digit_hides_nothing(length: int) -> None:
    """Protobuf puts the length, any byte, directly before a text: no boundary where 0x30 to 0x39 is a digit."""
    for value in (KINDS["CREDIT_CARD"], KINDS["US_SSN"], KINDS["IPV4"], KINDS["PHONE"]):
        request = ExportLogsServiceRequest()
        record = request.resource_logs.add().scope_logs.add().log_records.add()
        record.body.string_value = value + " " + "x" * (length - len(value) - 1)
        assert SCRUBBER.scrub_otlp(request).total() == 1
        assert value not in record.body.string_value


def test_words_of_context_count_across_key_and_value() -> None:
    request = request_with_record()
    record = record_of(request)
    record.attributes.add(key="phone", value=text_value("555 1234"))
    record.attributes.add(key="home_phones").value.array_value.values.append(text_value("5551234"))
    record.attributes.add(key="count", value=text_value("555 1234"))
    assert SCRUBBER.scrub_otlp(request) == {"PHONE": 2}
    assert record.attributes[-1].value.string_value == "555 1234"


def test_secret_keys_mask_texts_bytes_and_what_is_nested_but_no_numbers() -> None:
    request = request_with_record()
    record = record_of(request)
    record.attributes.add(key="db.password", value=text_value("x"))
    record.attributes.add(key="api_key").value.bytes_value = b"\xff\x00"
    nested = record.body.kvlist_value.values.add(key="authorization").value.kvlist_value
    nested.values.add(key="a", value=text_value("b"))
    nested.values.add(key="n", value=AnyValue(int_value=7))
    record.attributes.add(key="gen_ai.usage.input_tokens", value=AnyValue(int_value=12))
    assert SCRUBBER.scrub_otlp(request) == {"SECRET": 3}
    assert [pair.value for pair in nested.values] == [text_value("[SECRET]"), AnyValue(int_value=7)]
    assert record.attributes[-2].value.bytes_value == b"[SECRET]"


def test_subjects_become_tokens_wherever_they_stand() -> None:
    request = request_with_record()
    resource = request.resource_logs[0].resource
    resource.attributes.add(key="enduser.id", value=text_value("ada@example.com"))
    record = record_of(request)
    record.attributes.add(key="user.id", value=AnyValue(int_value=4711))
    user = record.attributes.add(key="user").value.kvlist_value
    user.values.add(key="id", value=text_value("u-1"))
    record.body.string_value = json.dumps({"subject_id": "u-2", "n": 2**64 + 1})
    assert SCRUBBER.scrub_otlp(request) == {"SUBJECT": 4}
    assert resource.attributes[-1].value.string_value == TOKENS.token("ada@example.com")
    assert record.attributes[-2].value == text_value(TOKENS.token("4711"))
    assert user.values[0].value.string_value == TOKENS.token("u-1")
    assert json.loads(record.body.string_value) == {"subject_id": TOKENS.token("u-2"), "n": 2**64 + 1}
    assert SCRUBBER.scrub_otlp(request) == {}


def test_masked_subjects_are_removed() -> None:
    request = request_with_record()
    record = record_of(request)
    for key in ("subject_id", "user.id", "enduser.id"):
        record.attributes.add(key=key, value=text_value("[EMAIL]"))
    assert SCRUBBER.scrub_otlp(request) == {"SUBJECT": 3}
    assert [pair.key for pair in record.attributes] == ["event_id", "n", "score"]


def test_off_makes_tokens_only() -> None:
    request = request_with_record()
    record = record_of(request)
    record.attributes.add(key="subject_id", value=text_value("u-1"))
    record.attributes.add(key="mail", value=text_value("ada@example.com"))
    assert Scrubber(load_table(), TOKENS, "off").scrub_otlp(request) == {"SUBJECT": 1}
    assert record.attributes[-2].value.string_value == TOKENS.token("u-1")
    assert record.attributes[-1].value.string_value == "ada@example.com"


NEARBY = st.text(st.sampled_from('0123456789 .-+@:/abcß\n\\"'), max_size=8)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(sorted(KINDS.values())), NEARBY, NEARBY, st.sampled_from(["k", "phone", "b5", "user"]))
def test_requests_and_texts_are_scrubbed_alike(value: str, before: str, after: str, key: str) -> None:
    text = before + value + after
    expected = {"k": {key: text}}
    SCRUBBER.scrub_event(expected)
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add()
    record.attributes.append(KeyValue(key=key, value=text_value(text)))
    SCRUBBER.scrub_otlp(request)
    assert record.attributes[0].value.string_value == expected["k"][key]
