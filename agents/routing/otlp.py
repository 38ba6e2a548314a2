"""OTLP log records to events, from protobuf and from OTLP's JSON form.

Source: opentelemetry-proto `logs/v1`, and the OTLP specification's JSON mapping (camelCase names, hex trace and span
ids, 64-bit integers as text). An export request and `LogsData` have the same wire form.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, LogsData, ResourceLogs

from agents.routing.bounds import DecodeLimits, check_tree, opens
from agents.routing.message import Event, Reason, Ruling, Unroutable


class LogEvent(NamedTuple):
    """An event, its place in the request, its resource's `service.name` if that has one, and what the sieve said."""

    at: int
    event: Event
    service: str | None
    ruling: Ruling | None


class LogRejected(NamedTuple):
    """A record that is no event, with an OTLP request that holds it alone, so that a dead letter can be replayed."""

    at: int
    reason: Unroutable
    value: bytes | None


class Logs(NamedTuple):
    """What the sieve left of a request, and how many records that had."""

    items: list[LogEvent | LogRejected]
    total: int


Sieve = Callable[[Event], Ruling | None]
"""See `decode.Sieve`."""

_NO_TRACE, _NO_SPAN = bytes(16), bytes(8)
_NANOS = 1_000_000_000


def from_protobuf(data: bytes, limits: DecodeLimits, sieve: Sieve | None = None) -> Logs:
    """Decode an OTLP `LogsData` (or export request), less the records that `sieve` drops.

    Raises:
        Unroutable: not protobuf, invalid UTF-8 in it, or more records than the limit.
    """
    try:
        logs = LogsData.FromString(data)
    except DecodeError as error:
        raise Unroutable(Reason.INVALID_PROTOBUF, "not an OTLP logs message, or text in it is not UTF-8") from error
    count = sum(len(scope.log_records) for resource in logs.resource_logs for scope in resource.scope_logs)
    _check_count(count, limits)
    # A string cannot be longer than the message that holds it.
    walk = len(data) > limits.max_string_chars
    items: list[LogEvent | LogRejected] = []
    index = -1
    for resource_logs in logs.resource_logs:
        resource = _attributes(resource_logs.resource.attributes, 2, limits)
        service = _service(resource)
        for scope in resource_logs.scope_logs:
            for record in scope.log_records:
                index += 1
                try:
                    event = _proto_event(record, limits)
                    if walk:
                        check_tree(event, limits)
                        check_tree(resource, limits)
                except Unroutable as reason:
                    items.append(LogRejected(index, reason, _alone(resource_logs, record)))
                    continue
                ruling = None
                if sieve is not None and (ruling := sieve(event)) is None:
                    continue
                _complete(event, record, resource)
                items.append(LogEvent(index, event, service, ruling))
    return Logs(items, count)


def is_logs(data: bytes) -> bool:
    """Tell whether `data` parses as OTLP logs."""
    try:
        LogsData.FromString(data)
    except DecodeError:
        return False
    return True


def from_json(request: dict[str, Any], limits: DecodeLimits, walk: bool, sieve: Sieve | None = None) -> Logs:
    """Decode a parsed OTLP/JSON request; `walk` asks for the depth and string bounds to be checked.

    Raises:
        Unroutable: the request's structure is not OTLP's, or it holds more records than the limit.
    """
    records = list(_json_records(request))
    _check_count(len(records), limits)
    items: list[LogEvent | LogRejected] = []
    for index, (record, attributes, resource) in enumerate(records):
        try:
            event = _json_event(record, resource, limits)
            if walk:
                check_tree(event, limits)
        except Unroutable as reason:
            items.append(LogRejected(index, reason, _json_alone(record, attributes)))
            continue
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            misshapen = Unroutable(Reason.INVALID_OTLP, f"a log record of another shape ({type(error).__name__})")
            items.append(LogRejected(index, misshapen, _json_alone(record, attributes)))
            continue
        ruling = None
        if sieve is not None and (ruling := sieve(event)) is None:
            continue
        items.append(LogEvent(index, event, _service(resource), ruling))
    return Logs(items, len(records))


def _check_count(count: int, limits: DecodeLimits) -> None:
    if count > limits.max_records:
        raise Unroutable(Reason.TOO_MANY_RECORDS, f"{count} records in one message, over {limits.max_records}")


def _service(resource: Event) -> str | None:
    name = resource.get("service.name")
    return name if isinstance(name, str) and name else None


def compose(body: Any, attributes: Event, limits: DecodeLimits) -> Event:
    """Make the event of a log record's body and its attributes under it.

    A map, or a text that is a JSON object, is the event; another text becomes `message`; anything else `body`.
    """
    if isinstance(body, str):
        body = _text_body(body, limits)
    elif not isinstance(body, dict):
        body = {} if body is None else {"body": body}
    return {**attributes, **body} if attributes else body


def _text_body(text: str, limits: DecodeLimits) -> Event:
    if text[:1] == "{" or text.lstrip(" \t\r\n")[:1] == "{":
        try:
            parsed = orjson.loads(text)
        except orjson.JSONDecodeError:
            return {"message": text}
        if opens(text) > limits.max_depth:
            check_tree(parsed, limits)
        return parsed  # type: ignore[no-any-return]  # a text that opens with a brace parses to an object
    return {"message": text} if text else {}


def fill_type(event: Event, name: str) -> None:
    """Name, in place, an event that names itself nowhere; a sieve needs to know."""
    if "event_type" not in event and (name or (name := event.get("event.name", ""))):
        event["event_type"] = name


def fill(event: Event, resource: Event, trace_id: str, span_id: str, nanos: int) -> None:
    """Fill, in place, what the body left open from the record's own fields; empty and 0 mean absent."""
    if resource and "resource" not in event:
        event["resource"] = dict(resource)  # a copy: later steps write into events
    if trace_id and "trace_id" not in event:
        event["trace_id"] = trace_id
    if span_id and "span_id" not in event:
        event["span_id"] = span_id
    if nanos and "timestamp" not in event:
        event["timestamp"] = rfc3339(nanos)


def rfc3339(nanos: int) -> str:
    """Format nanoseconds since the Unix epoch as RFC 3339 in UTC with nine digits: no precision is lost."""
    return f"{_second(nanos // _NANOS)}.{nanos % _NANOS:09d}Z"


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


# --- protobuf ---------------------------------------------------------------------------------------------------


def _proto_event(record: LogRecord, limits: DecodeLimits) -> Event:
    """The fields that a sieve may ask for, and all else that body and attributes hold."""
    body = record.body
    attributes = record.attributes
    event = compose(
        body.string_value or _value(body, 1, limits),
        _attributes(attributes, 2, limits) if attributes else {},
        limits,
    )
    fill_type(event, record.event_name)
    return event


def _complete(event: Event, record: LogRecord, resource: Event) -> None:
    trace_id, span_id = record.trace_id, record.span_id
    fill(
        event,
        resource,
        trace_id.hex() if len(trace_id) == 16 and trace_id != _NO_TRACE else "",
        span_id.hex() if len(span_id) == 8 and span_id != _NO_SPAN else "",
        record.time_unix_nano or record.observed_time_unix_nano,
    )


def _alone(resource_logs: ResourceLogs, record: LogRecord) -> bytes:
    logs = LogsData()
    entry = logs.resource_logs.add()
    entry.resource.CopyFrom(resource_logs.resource)
    entry.scope_logs.add().log_records.append(record)
    return bytes(logs.SerializeToString())


def _attributes(pairs: Any, depth: int, limits: DecodeLimits) -> Event:
    found: Event = {}
    for pair in pairs:
        value = pair.value
        # Most are texts, and asking for one costs a third of asking which kind it is.
        found[pair.key] = value.string_value or _value(value, depth, limits)
    return found


def _value(value: AnyValue, depth: int, limits: DecodeLimits) -> Any:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value
    if kind == "array_value" or kind == "kvlist_value":
        if depth > limits.max_depth:
            raise Unroutable(Reason.NESTING_TOO_DEEP, f"nested deeper than {limits.max_depth}")
        if kind == "kvlist_value":
            return _attributes(value.kvlist_value.values, depth + 1, limits)
        return [_value(item, depth + 1, limits) for item in value.array_value.values]
    if kind is None:
        return None
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    return getattr(value, kind)


# --- JSON -------------------------------------------------------------------------------------------------------


def _json_records(request: dict[str, Any]) -> Iterator[tuple[Any, Any, Event]]:
    """Yield each log record with its resource's attributes, as they came and as a map."""
    try:
        for resource_logs in request["resourceLogs"]:
            attributes = (resource_logs.get("resource") or {}).get("attributes")
            resource = _json_attributes(attributes)
            for scope in resource_logs.get("scopeLogs") or ():
                for record in scope.get("logRecords") or ():
                    yield record, attributes, resource
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise Unroutable(Reason.INVALID_OTLP, f"resourceLogs of another shape ({type(error).__name__})") from error


def _json_event(record: Any, resource: Event, limits: DecodeLimits) -> Event:
    body = _json_value(record.get("body"))
    event = compose(body, _json_attributes(record.get("attributes")), limits)
    fill_type(event, record.get("eventName") or "")
    fill(
        event,
        resource,
        _hex_id(record.get("traceId"), 32),
        _hex_id(record.get("spanId"), 16),
        int(record.get("timeUnixNano") or 0) or int(record.get("observedTimeUnixNano") or 0),
    )
    return event


def _json_alone(record: Any, attributes: Any) -> bytes | None:
    request = {"resourceLogs": [{"resource": {"attributes": attributes}, "scopeLogs": [{"logRecords": [record]}]}]}
    try:
        return orjson.dumps(request)
    except TypeError:  # nested deeper than orjson writes
        return None


def _hex_id(text: Any, length: int) -> str:
    if not isinstance(text, str) or len(text) != length or int(text, 16) == 0:
        return ""
    return text.lower()


def _json_attributes(pairs: Any) -> Event:
    return {pair["key"]: _json_value(pair.get("value")) for pair in pairs or ()}


def _json_value(value: Any) -> Any:
    """Unwrap an `AnyValue`. JSON that was parsed is at most 1,024 deep, so recursion is bounded."""
    if not value:
        return None
    ((kind, inner),) = value.items()
    if kind == "intValue":
        return int(inner)
    if kind == "doubleValue":
        return float(inner)
    if kind == "arrayValue":
        return [_json_value(item) for item in inner.get("values") or ()]
    if kind == "kvlistValue":
        return _json_attributes(inner.get("values"))
    if kind in ("stringValue", "boolValue", "bytesValue"):
        return inner
    raise Unroutable(Reason.INVALID_OTLP, "an AnyValue of unknown kind")
