"""Dead letters: what can never be routed, with where it came from and why."""

from __future__ import annotations

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

_KEPT_HEADERS = ("content-type", "content-encoding")


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
        headers += [(name, message.headers[name]) for name in _KEPT_HEADERS if name in message.headers]
    if value is None:
        headers.append((OMITTED, b"not carried"))
    elif len(value) + len(message.key or b"") > max_bytes:
        headers.append((OMITTED, b"%d bytes" % len(value)))
        value = None
    return OutRecord(DEAD_LETTERS.name, message.key, value or b"", tuple(headers))
