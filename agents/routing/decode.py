"""Kafka messages to events: which form a message has, and the records in it.

Forms: OTLP logs as protobuf or JSON, one JSON event, a JSON array of events, newline-delimited JSON; compressed if a
`content-encoding` header says so. A `content-type` header decides the form; without one the content does.

Most records are routine successes. A sieve drops those as soon as the fields that decide are read, before anything is
spent on the rest of the record; `complete` does the rest for those that are kept.
"""

from __future__ import annotations

from typing import Any

import orjson

from agents.routing import genai, otlp, otlp_json
from agents.routing.bounds import DecodeLimits, check_tree
from agents.routing.compression import decompress
from agents.routing.decoding import Decoded, Decoding, Sieve
from agents.routing.message import DecodedRecord, InboundMessage, Reason, Rejected, Unroutable

_PROTOBUF = frozenset(("application/x-protobuf", "application/protobuf", "application/vnd.google.protobuf"))
_JSON = frozenset(("application/json", "text/json"))
_NDJSON = frozenset(("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"))
_BOM = b"\xef\xbb\xbf"
_PEEK = 64  # bytes of a message looked at without copying it
_OTLP_TAG = b"\n"  # field 1, length-delimited: how every OTLP logs message begins. Also a line feed.


def decode(message: InboundMessage, limits: DecodeLimits) -> list[Decoded]:
    """Decode one message to its records, in order; what can never be read is a `Rejected` in its place.

    A message that cannot be read at all gives one `Rejected`, with the original bytes. Pure, and never raises for
    anything a producer can send.
    """
    return [
        (complete(item, limits) or item) if isinstance(item, DecodedRecord) else item
        for item in sift(message, limits, None).out
    ]


def sift(message: InboundMessage, limits: DecodeLimits, sieve: Sieve | None) -> Decoding:
    """Decode one message as `decode` does, less the records that `sieve` drops; those left carry its `ruling`.

    Their events hold the fields that decide, and whatever else came for nothing: see `complete`.
    """
    decoding = Decoding(message, limits, sieve)
    try:
        _decode(decoding)
    except Unroutable as reason:
        decoding = Decoding(message, limits, sieve)  # without the records that came before the fault
        decoding.reject(decoding.admit(1), reason, message.value)
    return decoding


def complete(record: DecodedRecord, limits: DecodeLimits) -> Rejected | None:
    """Fill, in place, what a record's event still lacks; or return why the record can never be routed."""
    if record.pending is not None:
        refused = otlp.complete(record, limits)
        if refused is not None:
            return refused
    genai.fill(record.event)
    return None


def _decode(decoding: Decoding) -> None:
    """Tell the form of a message and decode it."""
    message = decoding.message
    kind = ""
    if message.headers:
        kind = message.headers.get("content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    data = _body(message, decoding.limits)
    first = data[:1]
    if kind in _PROTOBUF or (not kind and first == _OTLP_TAG and not _is_json_after_newline(data)):
        otlp.from_protobuf(data, decoding)
    elif kind in _NDJSON:
        _add_lines(decoding, data)
    elif kind in _JSON or first == b"{" or data.lstrip()[:1] in (b"{", b"["):
        _add_json(decoding, data)
    else:
        otlp.from_protobuf(data, decoding)


def _needs_walk(decoding: Decoding, data: bytes) -> bool:
    """Whether a string or the nesting can exceed the bounds: neither can exceed what the whole message holds."""
    if decoding.walk is None:
        limits = decoding.limits
        decoding.walk = len(data) > limits.max_string_chars or data.count(b"{") + data.count(b"[") > limits.max_depth
    return decoding.walk


def _add_json(decoding: Decoding, data: bytes) -> None:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if not _first_line_is_object(data):
            raise _unreadable(data, error) from error
        _add_lines(decoding, data)
        return
    if type(value) is list:
        decoding.expect(len(value))
        for item in value:
            _add_value(decoding, data, item)
    else:
        _add_value(decoding, data, value, single=True)


def _add_lines(decoding: Decoding, data: bytes) -> None:
    lines = [line for line in data.split(b"\n") if line.strip()]
    decoding.expect(len(lines))
    for line in lines:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            decoding.reject(decoding.admit(1), _unreadable(line, error), line)
        else:
            _add_value(decoding, data, value)


def _add_value(decoding: Decoding, data: bytes, value: Any, single: bool = False) -> None:
    """Add a parsed JSON value: an event, or an OTLP request (a line of a file exporter's, or a whole message)."""
    if type(value) is not dict:
        reason = Unroutable(Reason.NOT_AN_OBJECT, f"a JSON {type(value).__name__} where an event was expected")
        decoding.reject(decoding.admit(1), reason, dumps_or_none(value))
        return
    if "resourceLogs" in value and isinstance(value["resourceLogs"], list):
        otlp_json.from_json(value, decoding, _needs_walk(decoding, data))
        return
    index = decoding.admit(1)
    ruling = None
    if decoding.sieve is not None and (ruling := decoding.sieve(value)) is None:
        return
    if _needs_walk(decoding, data):
        try:
            check_tree(value, decoding.limits)
        except Unroutable as reason:
            decoding.reject(index, reason, dumps_or_none(value))
            return
    decoding.keep(index, value, None, ruling, single)


def dumps_or_none(value: Any) -> bytes | None:
    """Return `value` as JSON, or None where it is nested deeper than orjson writes (254 levels)."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return None


def _body(message: InboundMessage, limits: DecodeLimits) -> bytes:
    value = message.value
    if not value:
        raise Unroutable(Reason.EMPTY_MESSAGE, "the message has no value")
    if len(value) > limits.max_message_bytes:
        raise Unroutable(Reason.MESSAGE_TOO_LARGE, f"{len(value)} bytes, over {limits.max_message_bytes}")
    if message.headers and (encoding := message.headers.get("content-encoding")):
        value = decompress(value, encoding.decode("latin-1"), limits.max_decompressed_bytes)
    return value.removeprefix(_BOM)


def _is_json_after_newline(data: bytes) -> bool:
    """Tell JSON that begins with a line feed from OTLP, whose first byte is the same: what parses as OTLP is OTLP."""
    rest = data[:_PEEK].lstrip() or data.lstrip()
    return rest[:1] in (b"{", b"[") and not otlp.is_logs(data)


def _first_line_is_object(data: bytes) -> bool:
    line, newline, rest = data.lstrip().partition(b"\n")
    if not newline or not rest.strip():
        return False
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _unreadable(data: bytes, error: orjson.JSONDecodeError) -> Unroutable:
    try:
        data.decode()
    except UnicodeDecodeError as bad:
        return Unroutable(Reason.INVALID_UTF8, f"byte {bad.start} is not UTF-8")
    # orjson's text names the fault and the place, and quotes nothing of the document.
    return Unroutable(Reason.INVALID_JSON, str(error))
