"""10,000 audit events without personal data: nothing is masked, and every value comes through exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from clean_events import clean_events
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from otel.scrub import Scrubber
from otel.subject import SubjectTokenizer
from otel.table import load_table
from otel.walk import Walk

COUNT = 10_000
SCRUBBER = Scrubber(load_table(), SubjectTokenizer(b"k" * 32))


@pytest.fixture(scope="module")
def corpus() -> list[dict[str, Any]]:
    return list(clean_events(COUNT))


def any_value(value: Any) -> AnyValue:
    """A decoded value as OTLP has it; an integer of more than 64 bits as text."""
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, str | int):
        return AnyValue(string_value=str(value))
    made = AnyValue()
    if isinstance(value, list):
        made.array_value.values.extend(map(any_value, value))
    elif isinstance(value, dict):
        made.kvlist_value.SetInParent()
        for key, inner in value.items():
            made.kvlist_value.values.add(key=key).value.CopyFrom(any_value(inner))
    return made


def requests(corpus: list[dict[str, Any]]) -> Iterator[ExportLogsServiceRequest]:
    """Each event as attributes, as a body of text, as a body of maps, and with its scalars as the resource's."""
    for event in corpus:
        request = ExportLogsServiceRequest()
        resource = request.resource_logs.add(schema_url="https://opentelemetry.io/schemas/1.37.0")
        scope = resource.scope_logs.add()
        scope.scope.name, scope.scope.version = "audit", "1.2.3.4"
        as_attributes = scope.log_records.add(event_name="audit.event", severity_text="INFO")
        for key, value in event.items():
            as_attributes.attributes.add(key=key).value.CopyFrom(any_value(value))
            if isinstance(value, str | int | float):
                resource.resource.attributes.add(key=key).value.CopyFrom(any_value(value))
        scope.log_records.add().body.string_value = orjson.dumps(event).decode()
        scope.log_records.add().body.CopyFrom(any_value(event))
        scope.log_records.add().body.bytes_value = orjson.dumps(event)
        yield request


def test_events_are_not_touched(corpus: list[dict[str, Any]]) -> None:
    assert len(corpus) == COUNT
    for event in corpus:
        before = orjson.dumps(event)
        found = SCRUBBER.scrub_event(event)
        assert (found, orjson.dumps(event)) == ({}, before)


def test_requests_are_not_touched(corpus: list[dict[str, Any]]) -> None:
    for request in requests(corpus):
        before = request.SerializeToString()
        found = SCRUBBER.scrub_otlp(request)
        assert (found, request.SerializeToString()) == ({}, before), request


def test_the_close_look_agrees_where_the_first_look_did_not_ask_for_it(corpus: list[dict[str, Any]]) -> None:
    for event in corpus:
        walk = Walk(SCRUBBER._engine)
        walk.tree(event)
        assert (walk.finish().counts, walk.changed) == ({}, False), event
        assert SCRUBBER.find(orjson.dumps(event).decode()) == []
