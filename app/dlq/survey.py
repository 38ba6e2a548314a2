"""Which letters are outstanding: one pass over the dead-letter topic, kept as a bit a letter."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import orjson
from aiokafka import TopicPartition

from agents.routing.dead_letters import MARK, MARK_BY, is_mark
from app.dlq.letters import Letter
from app.history import Record, open_reader, partitions_of, read_range
from app.settings import Settings
from app.topics import DEAD_LETTERS

REPLAYED: Final = "replayed"
DROPPED: Final = "dropped"
OUTSTANDING = "outstanding"

_PAGE_BITS = 1 << 15
_MAX_KINDS = 64
_OTHER = "other"


class UnreadableMark(RuntimeError):
    """A mark that cannot be read. Nothing may be replayed before it is known what it says."""


class OffsetSet:
    """Offsets of one partition, a bit each, in pages that are made when first needed."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, offset: int) -> bool:
        page = self._pages.get(offset // _PAGE_BITS)
        return page is not None and bool(page[offset % _PAGE_BITS >> 3] & 1 << (offset & 7))

    def add(self, offset: int) -> None:
        """Add an offset."""
        if offset not in self:
            page = self._pages.setdefault(offset // _PAGE_BITS, bytearray(_PAGE_BITS >> 3))
            page[offset % _PAGE_BITS >> 3] |= 1 << (offset & 7)
            self._count += 1

    def discard(self, offset: int) -> None:
        """Remove an offset, if it is there."""
        if offset in self:
            self._pages[offset // _PAGE_BITS][offset % _PAGE_BITS >> 3] &= ~(1 << (offset & 7))
            self._count -= 1

    def span(self) -> tuple[int, int] | None:
        """The first offset, and the one after the last; None if there is none."""
        pages = [number for number, page in sorted(self._pages.items()) if any(page)]
        if not pages:
            return None
        first, last = self._bits(pages[0]), self._bits(pages[-1])
        return pages[0] * _PAGE_BITS + (first & -first).bit_length() - 1, pages[-1] * _PAGE_BITS + last.bit_length()

    def _bits(self, page: int) -> int:
        return int.from_bytes(self._pages[page], "little")


class Mark(NamedTuple):
    """What was done with letters of one partition."""

    kind: str
    by: str
    offsets: list[int]


def read_mark(record: Record) -> Mark:
    """The mark that a record is. Raises `UnreadableMark`."""
    headers = dict(record.headers)
    try:
        offsets = orjson.loads(record.value or b"")["offsets"]
        if not all(type(offset) is int and 0 <= offset < record.offset for offset in offsets):
            raise ValueError("no offsets before its own")
    except (ValueError, TypeError, KeyError) as error:
        place = f"{record.partition}:{record.offset}"
        raise UnreadableMark(f"the mark at {place} of {DEAD_LETTERS.name} cannot be read ({error})") from error
    return Mark(headers[MARK].decode(), headers.get(MARK_BY, b"").decode("utf-8", "replace"), offsets)


@dataclass(frozen=True)
class Selection:
    """Which letters are meant: of one reason, from a time on (ms since the epoch), at these (partition, offset)."""

    reason: str | None = None
    since_ms: int | None = None
    places: frozenset[tuple[int, int]] = frozenset()

    def __contains__(self, letter: Letter) -> bool:
        return (
            (self.reason is None or letter.reason == self.reason)
            and (self.since_ms is None or letter.timestamp_ms >= self.since_ms)
            and (not self.places or (letter.partition, letter.offset) in self.places)
        )


class Kind(NamedTuple):
    """What letters are counted by."""

    reason: str
    replayable: bool


@dataclass
class PartitionSurvey:
    """One partition: its bounds, its outstanding letters of the selection, and which of the others were dropped."""

    start: int
    end: int
    kinds: dict[Kind, OffsetSet] = field(default_factory=lambda: defaultdict(OffsetSet))
    dropped: OffsetSet = field(default_factory=OffsetSet)

    def note(self, record: Record, selection: Selection) -> None:
        """Take note of the next record. A mark always follows its letters."""
        if not is_mark(record.headers):
            letter = Letter.of(record)
            if letter in selection:
                self.kinds[self._kind(letter)].add(letter.offset)
            return
        mark = read_mark(record)
        for offset in mark.offsets:
            for kind in self.kinds.values():
                kind.discard(offset)
            if mark.kind == DROPPED:
                self.dropped.add(offset)

    def state(self, offset: int) -> str:
        """What became of the letter of the selection at an offset."""
        if any(offset in kind for kind in self.kinds.values()):
            return OUTSTANDING
        return DROPPED if offset in self.dropped else REPLAYED

    def span(self) -> tuple[int, int] | None:
        """Between which offsets outstanding letters lie."""
        spans = [span for kind in self.kinds.values() if (span := kind.span())]
        return (min(first for first, _ in spans), max(end for _, end in spans)) if spans else None

    def _kind(self, letter: Letter) -> Kind:
        kind = Kind(letter.reason, letter.obstacle is None)
        known = kind in self.kinds or len(self.kinds) < _MAX_KINDS
        return kind if known else Kind(_OTHER, kind.replayable)


@dataclass
class Survey:
    """What is outstanding, of a selection, at one moment."""

    selection: Selection
    partitions: dict[int, PartitionSurvey]

    def by_reason(self, *, replayable: bool | None = None) -> Counter[str]:
        """How many letters are outstanding; only those that can be replayed, or that cannot, if asked for."""
        counts = Counter[str]()
        for partition in self.partitions.values():
            for kind, offsets in partition.kinds.items():
                if offsets and replayable in (None, kind.replayable):
                    counts[kind.reason] += len(offsets)
        return counts

    def is_outstanding(self, partition: int, offset: int) -> bool:
        """Whether the letter of the selection at this place is outstanding."""
        return partition in self.partitions and self.partitions[partition].state(offset) == OUTSTANDING


async def survey(settings: Settings, selection: Selection, ends: dict[TopicPartition, int] | None = None) -> Survey:
    """Read the dead-letter topic to its end (or to `ends`), or as much of it as the selection needs.

    Memory: a bit a letter, and one fetch.

    Raises:
        TopicAbsent, HistoryStalled: see `app.history`.
        UnreadableMark: a mark cannot be read.
    """
    found = Survey(selection, {})
    async with open_reader(settings) as reader:
        places = await partitions_of(reader, DEAD_LETTERS.name)
        starts = await reader.beginning_offsets(places)
        ends = ends or await reader.end_offsets(places)
    for place in places:
        wanted = [offset for partition, offset in selection.places if partition == place.partition]
        if selection.places and not wanted:
            continue
        first = max([starts[place], *([min(wanted)] if wanted else [])])
        part = found.partitions[place.partition] = PartitionSurvey(first, ends[place])
        async for record in read_range(settings, place, first, ends[place]):
            part.note(record, selection)
    return found


async def outstanding(settings: Settings, found: Survey) -> AsyncGenerator[Letter, None]:
    """The survey's outstanding letters, partition by partition, in order; memory holds one fetch."""
    for number, part in found.partitions.items():
        span = part.span()
        if span is None:
            continue
        async for record in read_range(settings, TopicPartition(DEAD_LETTERS.name, number), *span):
            if part.state(record.offset) == OUTSTANDING:
                yield Letter.of(record)


async def letters(settings: Settings, found: Survey) -> AsyncGenerator[Letter, None]:
    """All letters of the survey's selection, handled ones too."""
    for number, part in found.partitions.items():
        place = TopicPartition(DEAD_LETTERS.name, number)
        async for record in read_range(settings, place, part.start, part.end):
            if is_mark(record.headers):
                continue
            letter = Letter.of(record)
            if letter in found.selection:
                yield letter
