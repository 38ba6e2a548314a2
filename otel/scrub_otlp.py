"""The walk over an OTLP log request: bodies, attributes, resources, scopes, event names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from otel.detector import PART
from otel.keys import KeyKind
from otel.segments import set_item
from otel.walk import PERSON_ID, Walk

NeedsLook = Callable[[bytes], bool]
MakeWalk = Callable[[], Walk]


class OtlpScrubber:
    """Applies a `Walk` to the parts of a request that a first look finds suspicious."""

    def __init__(self, needs_look: NeedsLook, make_walk: MakeWalk) -> None:
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
        entities = part.entity_refs if isinstance(part, Resource) else ()
        if not (
            # An entity's tags look like JSON to the first look: where there is one, a closer look is due.
            entities
            or self._needs_look(part.SerializeToString())
            or (logs.schema_url and self._needs_look(PART + logs.schema_url.encode()))
        ):
            return
        walk = self._make_walk()
        walk.text(setattr, logs, "schema_url", "schema_url", logs.schema_url)
        if isinstance(part, InstrumentationScope):
            walk.text(setattr, part, "name", "name", part.name)
            walk.text(setattr, part, "version", "version", part.version)
        for entity in entities:
            walk.text(setattr, entity, "schema_url", "schema_url", entity.schema_url)
            walk.text(setattr, entity, "type", "type", entity.type)
            for names in (entity.id_keys, entity.description_keys):
                for index, name in enumerate(names):
                    walk.text(set_item, names, index, "", name)
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
        """Bytes may be text to whoever reads them later: UTF-8, or characters of one byte among others."""
        try:
            text, write = value.bytes_value.decode(), _set_utf8
        except UnicodeDecodeError:
            text, write = value.bytes_value.decode("latin-1"), _set_latin1
        walk.text(write, value, "bytes_value", name, text, secret=secret)

    def _attributes(self, walk: Walk, attributes: Any, *, secret: bool = False, person: bool = False) -> None:
        nobody: list[int] = []
        pair: KeyValue
        for index, pair in enumerate(attributes):
            name, value = pair.key, pair.value
            known = walk.known(name)
            if known.is_plain:
                self._any(walk, value, name, secret=secret)
                continue
            kind = known.kind
            if kind is KeyKind.IDENTITY:
                continue
            if kind is KeyKind.SUBJECT or (person and name == PERSON_ID):
                token = walk.subject(_plain(value))
                if token is not None:
                    if token:
                        value.string_value = token
                    else:
                        nobody.append(index)
                    continue
            clean = walk.key(name)
            if clean != name:
                pair.key = clean
            self._any(walk, value, name, secret=secret or kind is KeyKind.SECRET, person=kind is KeyKind.PERSON)
        for index in reversed(nobody):
            del attributes[index]


def _plain(value: AnyValue) -> str | int | None:
    """The text or integer in `value`: what can be an id."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value
    return value.int_value if kind == "int_value" else None


def _set_utf8(holder: Any, field: str, text: str) -> None:
    setattr(holder, field, text.encode())


def _set_latin1(holder: Any, field: str, text: str) -> None:
    setattr(holder, field, text.encode("latin-1"))
