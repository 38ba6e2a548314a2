"""Dead letters: what can never be routed, with where it came from and why.

Their topic also holds marks, which `flywheel dlq` appends in a letter's partition once it is replayed or dropped: a
letter that no mark lists is outstanding. Whoever reads the topic skips what `is_mark`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agents.routing.message import Rejected
from agents.routing.publish import Header, OutRecord
from app.topics import DEAD_LETTERS

REASON = "flywheel-reason"
DETAIL = "flywheel-detail"
ORIGIN_TOPIC = "flywheel-origin-topic"
ORIGIN_PARTITION = "flywheel-origin-partition"
ORIGIN_OFFSET = "flywheel-origin-offset"
ORIGIN_INDEX = "flywheel-origin-index"
OWNER = "flywheel-owner"
OMITTED = "flywheel-value-omitted"

MARK = "flywheel-mark"
"""Header of a mark: what was done, `replayed` or `dropped`. Its value is JSON whose `offsets` name the letters."""
MARK_BY = "flywheel-mark-by"

CONTENT_HEADERS = ("content-type", "content-encoding")
"""Headers that say how to read a value; a letter keeps them, and a replay gives them back."""


def is_mark(headers: Iterable[tuple[str, bytes]] | Mapping[str, bytes]) -> bool:
    """Tell a mark from a letter, by a record's headers."""
    names = headers if isinstance(headers, Mapping) else (name for name, _ in headers)
    return MARK in names


def dead_letter(rejected: Rejected, max_bytes: int) -> OutRecord:
    """Return the dead letter for a rejection.

    A value over `max_bytes` is left out and `flywheel-value-omitted` tells its size; the origin names the message.
    A whole message keeps the headers that say how to read it.
    """
    message = rejected.message
    headers: list[Header] = [
        (REASON, rejected.reason.value.encode()),
        (DETAIL, rejected.detail.encode()),
        (ORIGIN_TOPIC, message.topic.encode()),
        (ORIGIN_PARTITION, b"%d" % message.partition),
        (ORIGIN_OFFSET, b"%d" % message.offset),
        (ORIGIN_INDEX, b"%d" % rejected.index),
        (OWNER, message.owner(rejected.index).encode()),
    ]
    value = rejected.value
    if value is message.value:
        headers += [(name, message.headers[name]) for name in CONTENT_HEADERS if name in message.headers]
    if value is None:
        headers.append((OMITTED, b"not carried"))
    elif len(value) + len(message.key or b"") > max_bytes:
        headers.append((OMITTED, b"%d bytes" % len(value)))
        value = None
    return OutRecord(DEAD_LETTERS.name, message.key, value or b"", tuple(headers))
