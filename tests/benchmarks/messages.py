"""Events as messages of Kafka's input topic, in the forms that are measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import islice
from typing import Any, NamedTuple

import orjson
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData

from benchmarks.mix import SERVICE, Event

RECORDS_PER_MESSAGE = 500
_INFO = 9
_START_NANOS = 1_780_000_000 * 10**9


class Form(StrEnum):
    """How events lie in messages."""

    JSON_BODY = "otlp_json_body"
    """OTLP protobuf; each record's body is a string of JSON."""
    ATTRIBUTES = "otlp_attributes"
    """OTLP protobuf; each record's fields are its attributes."""
    SINGLE = "single_json"
    """One JSON event a message, keyed by the event's id."""

    @property
    def service(self) -> str:
        """The producer that the router takes an event of this form to come from."""
        return "unknown" if self is Form.SINGLE else SERVICE


class Message(NamedTuple):
    """A message to produce."""

    key: bytes | None
    value: bytes
    records: int


def encode(events: Iterable[Event], form: Form, per_message: int = RECORDS_PER_MESSAGE) -> Iterator[Message]:
    """Yield the events as messages, `per_message` records in each OTLP message."""
    if form is Form.SINGLE:
        for event in events:
            yield Message(event["event_id"].encode(), orjson.dumps(event), 1)
        return
    iterator = iter(events)
    while batch := list(islice(iterator, per_message)):
        yield Message(None, _logs(batch, form).SerializeToString(), len(batch))


def _logs(batch: list[Event], form: Form) -> LogsData:
    logs = LogsData()
    resource_logs = logs.resource_logs.add()
    resource = {"service.name": SERVICE, "service.version": "1.4.2", "deployment.environment.name": "production"}
    resource_logs.resource.attributes.extend(_pairs(resource))
    scope = resource_logs.scope_logs.add()
    scope.scope.name = "audit"
    for number, event in enumerate(batch):
        record = scope.log_records.add(time_unix_nano=_START_NANOS + number * 137_000, severity_number=_INFO)
        if form is Form.JSON_BODY:
            record.body.string_value = orjson.dumps(event).decode()
        else:
            record.attributes.extend(_pairs(event))
    return logs


def _pairs(fields: Event) -> Iterator[KeyValue]:
    return (KeyValue(key=name, value=_any_value(value)) for name, value in fields.items())


def _any_value(value: Any) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):  # before int, which it is a kind of
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, list):
        array = AnyValue()
        array.array_value.SetInParent()
        array.array_value.values.extend(_any_value(item) for item in value)
        return array
    raise TypeError(f"the mix has a {type(value).__name__}, for which OTLP has no value")
