"""What holds of scrubbing whatever the text or event: idempotent, one look never misses what the other finds."""

from __future__ import annotations

import copy
import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from otel.detector import PART
from otel.scrub import Scrubber
from otel.subject import SubjectTokenizer
from otel.table import load_table

TABLE = load_table()
SCRUBBER = Scrubber(TABLE, SubjectTokenizer(b"k" * 32))
VALUES = [
    *("ada.lovelace@example.com", "123-45-6789", "4111 1111 1111 1111", "203.0.113.77", "2001:db8::8a2e:370:7334"),
    *("+44 20 7946 0958", "GB82WEST12345698765432"),
]

FRAGMENTS = st.sampled_from(
    [
        *VALUES,
        "ada@example.com",
        "5551234",
        "555-1234",
        "phone",
        "call me at ",
        "card ",
        "ssn ",
        "fax",
        "\\n",
        "\n",
        '"',
        "'",
        ":",
        "=",
        " ",
        "-",
        ".",
        "(",
        ")",
        "+",
        "[EMAIL]",
        "]",
        "password",
        "token",
        "4111111111111111",
        "x",
        "ö",
        "日",
        "@",
        "\x00",
        "\x01",
        "{",
        "}",
        "\\",
        "\\u0040",
        "version 1.2.3.4",
        "1",
        "00",
        "office",
        "subject_id",
        "sub_",
        ",",
        "::1",
        "bearer abcdefgh12",
        "\\u0001",
        '"password":"',
        "//",
    ]
)
TEXTS = st.lists(FRAGMENTS | st.text(max_size=4), max_size=14).map("".join)


@settings(max_examples=800, deadline=None)
@given(TEXTS)
def test_scrubbing_is_idempotent(text: str) -> None:
    once = SCRUBBER.scrub_text(text).text
    again = SCRUBBER.scrub_text(once)
    assert (again.text, again.counts) == (once, {})


@settings(max_examples=800, deadline=None)
@given(TEXTS, st.sampled_from(["k", "phone", "card_number", "ssn", "version"]))
def test_the_first_look_never_misses_what_the_close_look_finds(text: str, key: str) -> None:
    scrub = {key: [text], "x": text}
    try:
        data = orjson.dumps(scrub)
    except TypeError:
        return
    if not SCRUBBER._detector.json_needs_look(data):
        for part in (f"{key}\x01{text}", f"x\x01{text}"):
            assert SCRUBBER._detector.scan(PART + part.encode()) == [], text


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(TEXTS | st.sampled_from(["user", "id", "subject_id", "token"]), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_events_of_any_shape_are_cleaned_once_and_keep_their_numbers(value: Any) -> None:
    event = {"value": value}
    SCRUBBER.scrub_event(event)
    once = copy.deepcopy(event)
    assert SCRUBBER.scrub_event(event) == {}
    assert event == once


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("ada@example.com123-45-6789", "[EMAIL][US_SSN]"),
        ("ada@example.com::1", "[EMAIL][IPV6]"),
        ("ada@example.comversion 1.2.3.4", "[EMAIL] [IPV4]"),
        ("+44 20 7946 0958/203.0.113.77", "[PHONE]/[IPV4]"),
        ("\x0btoken:x1x1", "\x0btoken:[SECRET]"),
        ("password\n=x1x1", "password\n=[SECRET]"),
    ],
)
def test_values_glued_to_one_another_are_all_masked(text: str, clean: str) -> None:
    assert SCRUBBER.scrub_text(text).text == clean
    event = {"a": text, text: 1}
    SCRUBBER.scrub_event(event)
    assert event == {"a": clean, clean: 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
IDENTITIES = st.dictionaries(
    st.sampled_from([*TABLE.identity_fields, "traceId", "SPAN-ID", "event.id"]), JSON, min_size=1, max_size=4
)


@settings(max_examples=400, deadline=None)
@given(IDENTITIES, TEXTS)
def test_identity_fields_of_events_are_never_altered(identities: dict[str, Any], text: str) -> None:
    """At the top, below, in lists, and in JSON inside a text that is cleaned beside them."""
    before = copy.deepcopy(identities)
    event = {"text": text, **identities, "a": {"b": [identities | {"mail": "ada@example.com"}]}}
    inner = copy.deepcopy(identities)
    try:
        event["json"] = json.dumps(inner | {"user.id": "u-1", "password": {"k": "v"}})
    except UnicodeEncodeError:
        return
    SCRUBBER.scrub_event(event)
    assert {name: event[name] for name in before} == before
    assert event["a"]["b"][0] == before | {"mail": "[EMAIL]"}
    assert {name: json.loads(event["json"])[name] for name in before} == before


@settings(max_examples=400, deadline=None)
@given(
    st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), st.integers(0, 2**64 - 1), TEXTS, IDENTITIES
)
def test_identity_fields_of_requests_are_never_altered(
    trace_id: bytes, span_id: bytes, nanos: int, text: str, identities: dict[str, Any]
) -> None:
    request = ExportLogsServiceRequest()
    record = (
        request.resource_logs.add()
        .scope_logs.add()
        .log_records.add(
            trace_id=trace_id, span_id=span_id, time_unix_nano=nanos, observed_time_unix_nano=nanos, flags=1
        )
    )
    for name in identities:
        pair = record.attributes.add(key=name)
        pair.value.array_value.values.add(string_value=text)
        record.body.kvlist_value.values.add(key=name, value=AnyValue(string_value=text, int_value=nanos % 2**63))
        record.body.kvlist_value.values.add(key=name).value.bytes_value = text.encode()
    record.attributes.add(key="mail").value.string_value = "ada@example.com"
    before = ExportLogsServiceRequest.FromString(request.SerializeToString())
    before.resource_logs[0].scope_logs[0].log_records[0].attributes[-1].value.string_value = "[EMAIL]"
    assert SCRUBBER.scrub_otlp(request) == {"EMAIL": 1}
    assert request == before
