"""OTLP log records to events, from protobuf.

Source: opentelemetry-proto `logs/v1`. An export request and `LogsData` have the same wire form. A map body, or a text
body that is a JSON object, is the event; attributes are merged under it (the body wins); resource attributes go to
`resource`; event name, trace id, span id and time fill what is missing.

A record is read in two steps. What a sieve asks for comes first: the whole body, and of the attributes those that
decide. `complete` reads the rest of what the sieve left.
"""

from __future__ import annotations

import base64
import time
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from agents.routing.bounds import DecodeLimits, check_tree, opens
from agents.routing.classify import DECIDING_FIELDS
from agents.routing.decoding import Decoding
from agents.routing.message import DecodedRecord, Event, Reason, Rejected, Unroutable
from agents.routing.otlp_schema import LogsData

_EARLY = (*DECIDING_FIELDS, "trace_id", "tracestate", "service.name", "event.name")
"""Attributes that decide whether a record is dropped, filtered or sampled out."""

_NO_TRACE, _NO_SPAN = bytes(16), bytes(8)
_NANOS = 1_000_000_000


class _Shared(NamedTuple):
    """What the records of one resource share."""

    resource_logs: Any
    attributes: Event
    walk: bool
    """Whether texts may be longer than the limit."""


def from_protobuf(data: bytes, decoding: Decoding) -> None:
    """Decode an OTLP `LogsData` (or export request), less the records that the sieve drops.

    Raises:
        Unroutable: not protobuf, invalid UTF-8 in it, or more records than the limit.
    """
    try:
        logs = LogsData.FromString(data)
    except DecodeError as error:
        raise Unroutable(Reason.INVALID_PROTOBUF, "not an OTLP logs message, or text in it is not UTF-8") from error
    limits, sieve = decoding.limits, decoding.sieve
    count = sum(len(scope.log_records) for resource in logs.resource_logs for scope in resource.scope_logs)
    index = decoding.admit(count) - 1
    # A string cannot be longer than the message that holds it.
    walk = len(data) > limits.max_string_chars
    for resource_logs in logs.resource_logs:
        resource = _map(resource_logs.resource.attributes, 2, limits)
        service = service_of(resource)
        shared = _Shared(resource_logs, resource, walk)
        for scope in resource_logs.scope_logs:
            for record in scope.log_records:
                index += 1
                try:
                    event = _early(record, limits)
                except Unroutable as reason:
                    decoding.reject(index, reason, _alone(resource_logs, record))
                    continue
                ruling = None
                if sieve is not None and (ruling := sieve(event)) is None:
                    continue
                if "trace_id" not in event:
                    trace_id = record.trace_id
                    if len(trace_id) == 16 and trace_id != _NO_TRACE:
                        event["trace_id"] = trace_id.hex()
                decoding.keep(index, event, service, ruling, False, (record, shared))


def is_logs(data: bytes) -> bool:
    """Tell whether `data` parses as OTLP logs."""
    try:
        LogsData.FromString(data)
    except DecodeError:
        return False
    return True


def complete(record: DecodedRecord, limits: DecodeLimits) -> Rejected | None:
    """Fill, in place, what the first step left out; or return why the record can never be routed."""
    log, shared = record.pending
    record.pending = None
    event = record.event
    try:
        text = log.body.string_value
        if text and opens(text) > limits.max_depth:
            check_tree(event, limits)
        if log.attributes:
            for name, value in log.attributes.items():
                if name not in event:
                    event[name] = value.string_value or _value(value, 2, limits)
        span_id = log.span_id
        fill(
            event,
            shared.attributes,
            span_id.hex() if len(span_id) == 8 and span_id != _NO_SPAN else "",
            log.time_unix_nano or log.observed_time_unix_nano,
        )
        if shared.walk:
            check_tree(event, limits)
    except Unroutable as reason:
        alone = _alone(shared.resource_logs, log)
        return Rejected(record.message, record.index, reason.reason, reason.detail, alone)
    return None


def body_event(body: Any) -> Event:
    """Return what a log record's body says: a map, or a text that is a JSON object, is the event itself."""
    if isinstance(body, str):
        return _text_event(body)
    if isinstance(body, dict):
        return body
    return {} if body is None else {"body": body}


def name_event(event: Event, name: str) -> None:
    """Give an event that names no type itself the record's, in place."""
    if "event_type" not in event and (name or (name := event.get("event.name", ""))):
        event["event_type"] = name


def fill(event: Event, resource: Event, span_id: str, nanos: int) -> None:
    """Fill, in place, what the body left open from the record's own fields; empty and 0 mean absent."""
    if resource and "resource" not in event:
        event["resource"] = dict(resource)  # a copy: later steps write into events
    if span_id and "span_id" not in event:
        event["span_id"] = span_id
    if nanos and "timestamp" not in event:
        event["timestamp"] = rfc3339(nanos)


def service_of(resource: Event) -> str | None:
    """Return a resource's `service.name`, if it has one."""
    name = resource.get("service.name")
    return name if isinstance(name, str) and name else None


def rfc3339(nanos: int) -> str:
    """Format nanoseconds since the Unix epoch as RFC 3339 in UTC with nine digits: no precision is lost."""
    return f"{_second(nanos // _NANOS)}.{nanos % _NANOS:09d}Z"


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _early(record: Any, limits: DecodeLimits) -> Event:
    """The event of a record's body, and those of its attributes that decide."""
    body = record.body
    text = body.string_value
    event = _text_event(text) if text else body_event(_value(body, 1, limits))
    attributes = record.attributes
    if attributes:
        for name in _EARLY:
            if name in attributes and name not in event:
                value = attributes[name]
                event[name] = value.string_value or _value(value, 2, limits)
    if "event_type" not in event:
        name_event(event, record.event_name)
    return event


def _text_event(text: str) -> Event:
    if text[:1] == "{" or text.lstrip(" \t\r\n")[:1] == "{":
        try:
            return orjson.loads(text)  # type: ignore[no-any-return]  # a text that opens with a brace is an object
        except orjson.JSONDecodeError:
            pass
    return {"message": text} if text else {}


def _alone(resource_logs: Any, record: Any) -> bytes:
    """An OTLP request that holds one record, so that a dead letter can be replayed."""
    logs = LogsData()
    entry = logs.resource_logs.add()
    entry.resource.CopyFrom(resource_logs.resource)
    entry.scope_logs.add().log_records.append(record)
    return bytes(logs.SerializeToString())


def _map(values: Any, depth: int, limits: DecodeLimits) -> Event:
    # Most are texts, and asking for one costs a third of asking which kind it is.
    return {name: value.string_value or _value(value, depth, limits) for name, value in values.items()}


def _value(value: Any, depth: int, limits: DecodeLimits) -> Any:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value
    if kind == "array_value" or kind == "kvlist_value":
        if depth > limits.max_depth:
            raise Unroutable(Reason.NESTING_TOO_DEEP, f"nested deeper than {limits.max_depth}")
        if kind == "kvlist_value":
            return _map(value.kvlist_value.values, depth + 1, limits)
        return [_value(item, depth + 1, limits) for item in value.array_value.values]
    if kind is None:
        return None
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    return getattr(value, kind)
