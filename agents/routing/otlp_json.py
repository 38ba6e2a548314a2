"""OTLP log records to events, from OTLP's JSON form.

Source: the OTLP specification's JSON mapping: camelCase names, hex trace and span ids, 64-bit integers as text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from agents.routing.bounds import DecodeLimits, check_tree, opens
from agents.routing.decoding import Decoding
from agents.routing.message import Event, Reason, Unroutable
from agents.routing.otlp import body_event, fill, name_event, service_of


def from_json(request: dict[str, Any], decoding: Decoding, walk: bool) -> None:
    """Decode a parsed OTLP/JSON request; `walk` asks for the depth and string bounds to be checked.

    Raises:
        Unroutable: the request's structure is not OTLP's, or it holds more records than the limit.
    """
    limits, sieve = decoding.limits, decoding.sieve
    records = list(_json_records(request))
    first = decoding.admit(len(records))
    for index, (record, attributes, resource) in enumerate(records, first):
        try:
            event = _json_event(record, resource, limits)
            if walk:
                check_tree(event, limits)
        except Unroutable as reason:
            decoding.reject(index, reason, _json_alone(record, attributes))
            continue
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            misshapen = Unroutable(Reason.INVALID_OTLP, f"a log record of another shape ({type(error).__name__})")
            decoding.reject(index, misshapen, _json_alone(record, attributes))
            continue
        ruling = None
        if sieve is None or (ruling := sieve(event)) is not None:
            decoding.keep(index, event, service_of(resource), ruling)


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
    text = body if isinstance(body, str) else ""
    event = body_event(body)
    if opens(text) > limits.max_depth:
        check_tree(event, limits)
    for name, value in _json_attributes(record.get("attributes")).items():
        event.setdefault(name, value)
    name_event(event, record.get("eventName") or "")
    if trace_id := _hex_id(record.get("traceId"), 32):
        event.setdefault("trace_id", trace_id)
    nanos = _whole(record.get("timeUnixNano") or 0, 0) or _whole(record.get("observedTimeUnixNano") or 0, 0)
    fill(event, resource, _hex_id(record.get("spanId"), 16), nanos)
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


def _whole(value: Any, least: int) -> int:
    """Read an integer of 64 bits. A larger one is no OTLP, no time that a platform knows, and not written as JSON."""
    number = int(value)
    if not least <= number < 2**64:
        raise ValueError("an integer beyond 64 bits")
    return number


def _json_attributes(pairs: Any) -> Event:
    event = {pair["key"]: _json_value(pair.get("value")) for pair in pairs or ()}
    if any(type(name) is not str for name in event):
        raise TypeError("an attribute's key is not text")
    return event


def _json_value(value: Any) -> Any:
    """Unwrap an `AnyValue`. JSON that was parsed is at most 1,024 deep, so recursion is bounded."""
    if not value:
        return None
    ((kind, inner),) = value.items()
    if kind == "intValue":
        return _whole(inner, -(2**63))
    if kind == "doubleValue":
        return float(inner)
    if kind == "arrayValue":
        return [_json_value(item) for item in inner.get("values") or ()]
    if kind == "kvlistValue":
        return _json_attributes(inner.get("values"))
    if kind in ("stringValue", "boolValue", "bytesValue"):
        return inner
    raise Unroutable(Reason.INVALID_OTLP, "an AnyValue of unknown kind")
