"""A dead letter, as read back from its topic."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property

from agents.routing import dead_letters as names
from app.backfill.file import FILE_TOPIC
from app.history import Record
from app.topics import AUDIT_EVENTS

_OWNER = re.compile(r".+:[0-9]+:[0-9]+:[0-9]+", re.DOTALL)
_REASON_CHARS = 64


@dataclass(frozen=True)
class Letter:
    """One letter. `headers` are the last of each name; `size` is bytes of key and value."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]
    size: int

    @classmethod
    def of(cls, record: Record) -> Letter:
        """The letter that a record of the topic is."""
        headers = {name: value or b"" for name, value in record.headers}
        key, value = record.key, record.value
        size = len(key or b"") + len(value or b"")
        return cls(record.partition, record.offset, record.timestamp, key, value, headers, size)

    def without_value(self) -> Letter:
        """The letter as lists hold it, which may be long."""
        return replace(self, value=None)

    @property
    def place(self) -> str:
        """`PARTITION:OFFSET` in the dead-letter topic."""
        return f"{self.partition}:{self.offset}"

    @cached_property
    def reason(self) -> str:
        """Why it could not be routed: a value of `agents.routing.message.Reason`, if the router wrote it."""
        return self._text(names.REASON)[:_REASON_CHARS] or "unknown"

    @property
    def detail(self) -> str:
        """The particulars of the reason."""
        return self._text(names.DETAIL)

    @property
    def origin(self) -> str:
        """`TOPIC:PARTITION:OFFSET:INDEX` of the record that failed; of a replay, the replay's own place."""
        parts = (names.ORIGIN_TOPIC, names.ORIGIN_PARTITION, names.ORIGIN_OFFSET, names.ORIGIN_INDEX)
        return ":".join(self._text(part) or "?" for part in parts)

    @property
    def origin_partition(self) -> int | None:
        """The partition of the input topic that it came from; None where it came from elsewhere."""
        partition = self._text(names.ORIGIN_PARTITION)
        came_in = self._text(names.ORIGIN_TOPIC) == AUDIT_EVENTS.name
        return int(partition) if came_in and partition.isdecimal() else None

    @property
    def owner(self) -> str:
        """The place that owns its claims: where the record first stood, however often it was replayed."""
        return self._text(names.OWNER)

    @cached_property
    def obstacle(self) -> str | None:
        """Why it cannot be replayed; None if it can."""
        if names.OMITTED in self.headers:
            return f"its value was left out ({self._text(names.OMITTED)})"
        if self.value is None:
            return "it has no value"
        if not _OWNER.fullmatch(self.owner):
            return "it names no owner"
        if not self.owner.startswith((f"{AUDIT_EVENTS.name}:", FILE_TOPIC)):
            return f"it did not come in by {AUDIT_EVENTS.name}"
        return None

    @property
    def remedy(self) -> str:
        """What to do about a letter that cannot be replayed."""
        if names.OMITTED not in self.headers:
            return "drop it, once whoever wrote it has been asked"
        topic, partition, offset, _ = self.origin.rsplit(":", 3)
        if topic.startswith(FILE_TOPIC):
            return f"run `flywheel backfill --from FILE` again over line {offset} of the file {topic}"
        if not offset.isdecimal():
            return "look for the message where its producer keeps it"
        return f"run `flywheel backfill --from {partition}:{offset} --to {partition}:{int(offset) + 1}`"

    def _text(self, header: str) -> str:
        return self.headers.get(header, b"").decode("utf-8", "replace")
