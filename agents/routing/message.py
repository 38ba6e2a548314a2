"""What goes into the router and what comes out of decoding: messages, records, and rejections with their reasons."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from models.event import Classification

Event = dict[str, Any]

NO_HEADERS: Mapping[str, bytes] = MappingProxyType({})


class Reason(StrEnum):
    """Why something can never be routed. Each is a label value and a dead letter's header, so the set stays small."""

    EMPTY_MESSAGE = "empty_message"
    MESSAGE_TOO_LARGE = "message_too_large"
    DECOMPRESSED_TOO_LARGE = "decompressed_too_large"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    CORRUPT_COMPRESSION = "corrupt_compression"
    INVALID_UTF8 = "invalid_utf8"
    INVALID_JSON = "invalid_json"
    INVALID_PROTOBUF = "invalid_protobuf"
    INVALID_OTLP = "invalid_otlp"
    NOT_AN_OBJECT = "not_an_object"
    TOO_MANY_RECORDS = "too_many_records"
    NESTING_TOO_DEEP = "nesting_too_deep"
    STRING_TOO_LONG = "string_too_long"
    INVALID_SCORE = "invalid_score"
    INVALID_VIOLATIONS = "invalid_violations"
    INVALID_FIELD = "invalid_field"
    RECORD_TOO_LARGE = "record_too_large"
    SCRUB_FAILED = "scrub_failed"
    INTERNAL_ERROR = "internal_error"


class Unroutable(ValueError):
    """This message or record can never be routed as it is. `detail` holds no text of the event."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


OWNER_HEADER = "flywheel-owner"
"""Names the place a replayed record first stood at; it, not the replay's own place, then owns the claims."""

# A topic's letters only (Kafka allows no others; a backfill's file has `file:` in front), and numbers that Kafka has: a
# line feed would end the claim early, and its redelivery would be taken for a duplicate.
_OWNER = re.compile(r"((?:file:)?[A-Za-z0-9._-]{1,249}:[0-9]{1,10}:[0-9]{1,19}):([0-9]{1,9})")


class Halt(RuntimeError):
    """Going on would do harm: the worker stops, commits nothing of the batch at hand, and says why."""


@dataclass(slots=True)
class InboundMessage:
    """One Kafka message as fetched. Header names are lower case. Not frozen: that would cost more than the rest."""

    topic: str
    partition: int
    offset: int
    value: bytes | None
    key: bytes | None = None
    headers: Mapping[str, bytes] = field(default_factory=dict)

    def owner(self, index: int) -> str:
        """Name the place of record `index` of this message: stable over redeliveries, so it can own a claim.

        A replay carries its original place in `flywheel-owner` (`topic:partition:offset:index`): a record that had
        claimed its id before it was dead-lettered must not find itself a duplicate. A header of another form is none.
        """
        if self.headers and (told := self.headers.get(OWNER_HEADER)) is not None:
            place = _OWNER.fullmatch(told.decode("latin-1"))
            if place is not None:
                return f"{place[1]}:{int(place[2]) + index}"
        return f"{self.topic}:{self.partition}:{self.offset}:{index}"


Ruling = Classification | Unroutable
"""What a record is, or why it can never be routed."""


@dataclass(slots=True)
class DecodedRecord:
    """One event of a message. `single` marks an event that was its message alone, whose key may be kept.

    `ruling` is what the sieve said of it (see `decode.sift`), None where nobody asked; `pending` is what
    `decode.complete` still has to read.
    """

    message: InboundMessage
    index: int
    event: Event
    service: str
    single: bool = False
    ruling: Ruling | None = None
    pending: Any = None


@dataclass(slots=True)
class Rejected:
    """One record (or a whole message, which counts as one record) for the dead-letter topic.

    `value` is what the dead letter carries: the original bytes, or the record; None where it must not leave.
    """

    message: InboundMessage
    index: int
    reason: Reason
    detail: str
    value: bytes | None


def where(error: BaseException) -> str:
    """Name an error's type and place for the log, without its text, which may quote an event."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
