"""Kafka messages to events: which form a message has, and the records in it.

Forms: OTLP logs as protobuf or JSON, one JSON event, a JSON array of events, newline-delimited JSON; compressed if a
`content-encoding` header says so. A `content-type` header decides the form; without one the content does.

Most records are routine successes. A sieve drops those as soon as the fields that decide are read, before anything is
spent on the rest of the record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from agents.routing import genai, otlp
from agents.routing.bounds import DecodeLimits, check_tree
from agents.routing.compression import decompress
from agents.routing.message import DecodedRecord, Event, InboundMessage, Reason, Rejected, Ruling, Unroutable

UNKNOWN_SERVICE = "unknown"

_PROTOBUF = frozenset(("application/x-protobuf", "application/protobuf", "application/vnd.google.protobuf"))
_JSON = frozenset(("application/json", "text/json"))
_NDJSON = frozenset(("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"))
_BOM = b"\xef\xbb\xbf"
_PEEK = 64  # bytes of a message looked at without copying it
_OTLP_TAG = b"\n"  # field 1, length-delimited: how every OTLP logs message begins. Also a line feed.

Decoded = DecodedRecord | Rejected

Sieve = Callable[[Event], Ruling | None]
"""Rules on an event by the fields that decide: what it is, why it cannot be routed, or None to drop it. Never raises."""


class Sifted(NamedTuple):
    """What the sieve left of a message, and how many records that had."""

    items: list[Decoded]
    total: int


def decode(message: InboundMessage, limits: DecodeLimits) -> list[Decoded]:
    """Decode one message to its records, in order; what can never be read is a `Rejected` in its place.

    A message that cannot be read at all gives one `Rejected`, with the original bytes. Pure, and never raises for
    anything a producer can send.
    """
    return sift(message, limits, None).items


def sift(message: InboundMessage, limits: DecodeLimits, sieve: Sieve | None) -> Sifted:
    """Decode one message as `decode` does, less the records that `sieve` drops; those left carry its `ruling`."""
    decoder = _Decoder(message, limits, sieve)
    try:
        decoder.decode()
    except Unroutable as reason:
        return Sifted([Rejected(message, 0, reason.reason, reason.detail, message.value)], 1)
    return Sifted(decoder.out, decoder.index + 1)


class _Decoder:
    """One message's decoding; holds what every record of it shares."""

    __slots__ = ("genai", "index", "limits", "message", "out", "sieve", "walk")

    def __init__(self, message: InboundMessage, limits: DecodeLimits, sieve: Sieve | None) -> None:
        self.message = message
        self.limits = limits
        self.sieve = sieve
        self.out: list[Decoded] = []
        self.index = -1
        """Of the record at hand."""
        self.walk = True
        self.genai = True

    def decode(self) -> None:
        message = self.message
        kind = ""
        if message.headers:
            kind = message.headers.get("content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        data = self._body()
        limits = self.limits
        # One look at the whole message instead of one at each record; no encoder writes these letters as escapes.
        self.genai = genai.PREFIX in data
        if kind in _PROTOBUF or (not kind and data[:1] == _OTLP_TAG and not _is_json_after_newline(data)):
            self._add_logs(otlp.from_protobuf(data, limits, self.sieve))
            return
        # Neither a string nor the nesting can exceed what the whole message holds: most need no walk.
        self.walk = len(data) > limits.max_string_chars or data.count(b"{") + data.count(b"[") > limits.max_depth
        if kind in _NDJSON:
            self._add_lines(data)
        elif kind in _JSON or data.lstrip()[:1] in (b"{", b"["):
            self._add_json(data)
        else:
            self._add_logs(otlp.from_protobuf(data, limits, self.sieve))

    def _body(self) -> bytes:
        message, limits = self.message, self.limits
        value = message.value
        if not value:
            raise Unroutable(Reason.EMPTY_MESSAGE, "the message has no value")
        if len(value) > limits.max_message_bytes:
            raise Unroutable(Reason.MESSAGE_TOO_LARGE, f"{len(value)} bytes, over {limits.max_message_bytes}")
        if message.headers and (encoding := message.headers.get("content-encoding")):
            value = decompress(value, encoding.decode("latin-1"), limits.max_decompressed_bytes)
        return value.removeprefix(_BOM)

    def _add_json(self, data: bytes) -> None:
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            if not _first_line_is_object(data):
                raise _unreadable(data, error) from error
            self._add_lines(data)
            return
        if isinstance(value, list):
            self._check_count(len(value))
            for item in value:
                self._add_value(item)
        else:
            self._add_value(value, single=True)

    def _add_lines(self, data: bytes) -> None:
        lines = [line for line in data.split(b"\n") if line.strip()]
        self._check_count(len(lines))
        for line in lines:
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                self.index += 1
                self._reject(_unreadable(line, error), line)
            else:
                self._add_value(value)

    def _add_value(self, value: Any, single: bool = False) -> None:
        """Add a parsed JSON value: an event, or an OTLP request (a line of a file exporter's, or a whole message)."""
        if type(value) is dict and "resourceLogs" in value and isinstance(value["resourceLogs"], list):
            self._add_logs(otlp.from_json(value, self.limits, self.walk, self.sieve))
            return
        self.index += 1
        if type(value) is not dict:
            self._reject(
                Unroutable(Reason.NOT_AN_OBJECT, f"a JSON {type(value).__name__} where an event was expected"),
                dumps_or_none(value),
            )
            return
        if self.walk:
            try:
                check_tree(value, self.limits)
            except Unroutable as reason:
                self._reject(reason, dumps_or_none(value))
                return
        ruling = None
        if self.sieve is not None and (ruling := self.sieve(value)) is None:
            return
        self._accept(self.index, value, _service_of(value), ruling, single)

    def _add_logs(self, logs: otlp.Logs) -> None:
        self._check_count(self.index + 1 + logs.total)
        first = self.index + 1
        for item in logs.items:
            if isinstance(item, otlp.LogRejected):
                self.index = first + item.at
                self._reject(item.reason, item.value)
            else:
                self._accept(first + item.at, item.event, item.service or _service_of(item.event), item.ruling)
        self.index = first + logs.total - 1

    def _accept(
        self, index: int, event: Event, service: str | None, ruling: Ruling | None, single: bool = False
    ) -> None:
        if self.genai:
            genai.fill(event)
        self.out.append(DecodedRecord(self.message, index, event, service or UNKNOWN_SERVICE, single, ruling))

    def _reject(self, reason: Unroutable, value: bytes | None) -> None:
        self.out.append(Rejected(self.message, self.index, reason.reason, reason.detail, value))

    def _check_count(self, count: int) -> None:
        if count > self.limits.max_records:
            raise Unroutable(Reason.TOO_MANY_RECORDS, f"{count} records in one message, over {self.limits.max_records}")


def dumps_or_none(value: Any) -> bytes | None:
    """Return `value` as JSON, or None where it is nested deeper than orjson writes (254 levels)."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return None


def _service_of(event: Event) -> str | None:
    resource = event.get("resource")
    name = resource.get("service.name") if isinstance(resource, dict) else None
    if not isinstance(name, str) or not name:
        name = event.get("service.name")
    return name if isinstance(name, str) and name else None


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
