"""The walk over an OTLP log request: bodies, attributes, resources, scopes, event names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from otel.detector import PART
from otel.keys import KeyClassifier, KeyKind
from otel.walk import PERSON_ID, Walk

NeedsLook = Callable[[bytes], bool]
MakeWalk = Callable[[], Walk]


class OtlpScrubber:
    """Applies a `Walk` to the parts of a request that a first look finds suspicious."""

    def __init__(self, keys: KeyClassifier, needs_look: NeedsLook, make_walk: MakeWalk) -> None:
        self._keys = keys
        self._needs_look = needs_look
        self._make_walk = make_walk

    def scrub(self, request: ExportLogsServiceRequest) -> list[Walk]:
        """Cleans `request` in place; returns the finished walks, which hold the counts."""
        walks: list[Walk] = []
        for resource_logs in request.resource_logs:
            self._envelope(walks, resource_logs, resource_logs.resource)
            for scope_logs in resource_logs.scope_logs:
                self._envelope(walks, scope_logs, scope_logs.scope)
                walks.extend(
                    self._record(record)
                    for record in scope_logs.log_records
                    if self._needs_look(record.SerializeToString())
                )
        return walks

    def _envelope(
        self, walks: list[Walk], logs: ResourceLogs | ScopeLogs, part: Resource | InstrumentationScope
    ) -> None:
        data = part.SerializeToString()
        if not (self._needs_look(data) or (logs.schema_url and self._needs_look(PART + logs.schema_url.encode()))):
            return
        walk = self._make_walk()
        walk.text(setattr, logs, "schema_url", "schema_url", logs.schema_url)
        if isinstance(part, InstrumentationScope):
            walk.text(setattr, part, "name", "name", part.name)
            walk.text(setattr, part, "version", "version", part.version)
        self._attributes(walk, part.attributes)
        walks.append(walk.finish())

    def _record(self, record: LogRecord) -> Walk:
        walk = self._make_walk()
        walk.text(setattr, record, "event_name", "event_name", record.event_name)
        walk.text(setattr, record, "severity_text", "severity_text", record.severity_text)
        self._any(walk, record.body, "")
        self._attributes(walk, record.attributes)
        return walk.finish()

    def _any(self, walk: Walk, value: AnyValue, name: str, *, secret: bool = False, person: bool = False) -> None:
        kind = value.WhichOneof("value")
        if kind == "string_value":
            walk.text(setattr, value, "string_value", name, value.string_value, secret=secret)
        elif kind == "bytes_value":
            self._bytes(walk, value, name, secret=secret)
        elif kind == "array_value":
            for item in value.array_value.values:
                self._any(walk, item, name, secret=secret)
        elif kind == "kvlist_value":
            self._attributes(walk, value.kvlist_value.values, secret=secret, person=person)

    def _bytes(self, walk: Walk, value: AnyValue, name: str, *, secret: bool) -> None:
        """Bytes that are UTF-8 are text to whoever reads them later."""
        try:
            text = value.bytes_value.decode()
        except UnicodeDecodeError:
            text = ""
        if text or secret:
            walk.text(_set_bytes, value, "bytes_value", name, text or "\ufffd", secret=secret)

    def _attributes(self, walk: Walk, attributes: Any, *, secret: bool = False, person: bool = False) -> None:
        nobody: list[int] = []
        pair: KeyValue
        for index, pair in enumerate(attributes):
            kind = self._keys.kind(pair.key)
            if kind is KeyKind.IDENTITY:
                continue
            if kind is KeyKind.SUBJECT or (person and pair.key == PERSON_ID):
                token = walk.subject(_plain(pair.value))
                if token is not None:
                    if token:
                        pair.value.string_value = token
                    else:
                        nobody.append(index)
                    continue
            name = pair.key
            clean = walk.key(name)
            if clean != name:
                pair.key = clean
            hidden = secret or kind is KeyKind.SECRET
            self._any(walk, pair.value, name, secret=hidden, person=kind is KeyKind.PERSON)
        for index in reversed(nobody):
            del attributes[index]


def _plain(value: AnyValue) -> str | int | None:
    """The text or integer in `value`: what can be an id."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value
    return value.int_value if kind == "int_value" else None


def _set_bytes(holder: Any, field: str, text: str) -> None:
    setattr(holder, field, text.encode())
