"""What a backfill reads: steps of messages, each with the place that it reaches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from agents.routing.message import InboundMessage

BATCH_BYTES = 2 * 1024 * 1024
"""A step's values together, unless one message alone is larger. Decoded they take some ten times as much memory."""


class Range(NamedTuple):
    """What is left of one partition (of a file: of its lines): the next offset, and the one after the last."""

    next: int
    end: int | None
    """None: to the end of the file."""


Ranges = dict[int, Range]
"""By partition; a file is partition 0."""


class Step(NamedTuple):
    """Messages, and where reading goes on once they are routed, by partition."""

    messages: list[InboundMessage]
    reached: dict[int, int]


class SourceUnreadable(RuntimeError):
    """A file is damaged, or is not the one that the backfill began with."""


class Source(Protocol):
    """A topic or a file."""

    def describe(self) -> dict[str, Any]:
        """What was asked for: a backfill goes on only with the same."""

    async def ranges(self) -> Ranges:
        """What there is to read, asked once, at the start."""

    def steps(self, ranges: Ranges, messages: int) -> AsyncGenerator[Step, None]:
        """Read from `next` to `end`, at most `messages` messages a step; may raise `SourceUnreadable`."""


def bounded(messages: Iterable[InboundMessage], most: int) -> Iterator[list[InboundMessage]]:
    """Messages in lists of at most `most`, and of about `BATCH_BYTES` bytes."""
    batch: list[InboundMessage] = []
    size = 0
    for message in messages:
        batch.append(message)
        size += len(message.value or b"")
        if len(batch) >= most or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
