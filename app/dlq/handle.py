"""Replaying and dropping dead letters.

Every batch of letters is handled in one Kafka transaction: what goes back to the input topic, and the marks that say
so, are there together or not at all. So a letter is handled once however often the command is interrupted, repeated,
or run twice at a time; what an interrupted run has not marked is outstanding for the next.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from aiokafka import TopicPartition

from agents.routing.dead_letters import CONTENT_HEADERS, MARK, MARK_BY, OWNER
from app.dlq.letters import Letter
from app.dlq.survey import DROPPED, REPLAYED, Selection, Survey, outstanding, survey
from app.dlq.writer import Addressed, Writer, open_writer
from app.history import open_reader, partitions_of
from app.settings import Settings
from app.topics import AUDIT_EVENTS, DEAD_LETTERS

BATCH_LETTERS = 200
BATCH_BYTES = 4 * 1024 * 1024
SETTLED_WITHIN_S = 60.0
MAX_EXAMPLES = 5


class Unsettled(RuntimeError):
    """Another producer's open transaction hides what lies behind it, marks among it. Transient: ask again."""


@dataclass(frozen=True)
class Order:
    """What is to be done with which letters, by whom, and why. `limit` bounds the letters of this run."""

    verb: Literal["replayed", "dropped"]
    selection: Selection
    by: str
    comment: str = ""
    limit: int | None = None
    transactional: bool = True


@dataclass
class Outcome:
    """What a run did. `left` are letters that cannot be replayed, with a few examples of what to do about them."""

    planned: int = 0
    handled: Counter[str] = field(default_factory=Counter)
    """Letters by reason."""
    left: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    outstanding: int = 0
    """Letters of the selection that are outstanding afterwards, those left among them."""
    not_outstanding: list[str] = field(default_factory=list)
    """Places that were asked for and hold no outstanding letter: handled already, gone, or no letter at all."""
    audit_entry: str | None = None

    @property
    def done(self) -> int:
        """How many letters were handled."""
        return self.handled.total()


Announce = Callable[[str, dict[str, Any]], Awaitable[str]]
"""Puts an entry (its type and body) into the audit log and returns its id once it is there, or raises."""

Watch = Callable[[Outcome], None]
"""Told of the outcome so far after every batch."""


async def handle(settings: Settings, order: Order, announce: Announce, watch: Watch) -> Outcome:
    """Replay or drop the outstanding letters of a selection; nothing takes effect before it is announced.

    Raises:
        Fenced, NotExclusive, WriteUncertain: see `app.dlq.writer`.
        TopicAbsent, HistoryStalled: see `app.history`.
        UnreadableMark, Unsettled: what is outstanding cannot be told.
        KafkaError: the broker cannot be reached, or refuses a record.
    """
    # The writer first: whoever wrote before can then change nothing any more about what the survey finds.
    async with open_writer(settings, transactional=order.transactional) as writer:
        found = await survey(settings, order.selection, await _settled_ends(settings))
        outcome = _plan(order, found)
        if order.verb == REPLAYED:
            await _explain_left(settings, found, outcome)
        if outcome.planned:
            outcome.audit_entry = await announce(f"dead_letters_{order.verb}", _entry(order, found, outcome))
            async for batch in _batches(_chosen(settings, found, order, outcome.planned)):
                await writer.write(await _records(writer, batch, order, outcome.audit_entry))
                outcome.handled.update(letter.reason for letter in batch)
                outcome.outstanding -= len(batch)
                watch(outcome)
    return outcome


async def _settled_ends(settings: Settings) -> dict[TopicPartition, int]:
    """The ends up to which all is decided, once they include every mark written so far.

    A transaction's records become visible some time after it was committed, and another producer's open transaction
    would hide them for longer; a letter whose mark is hidden would be handled twice.
    """
    async with open_reader(settings) as reader, open_reader(settings, committed=False) as all_of_it:
        places = await partitions_of(reader, DEAD_LETTERS.name)
        written: dict[TopicPartition, int] = await all_of_it.end_offsets(places)
        deadline = asyncio.get_running_loop().time() + SETTLED_WITHIN_S
        while True:
            ends: dict[TopicPartition, int] = await reader.end_offsets(places)
            hidden = [place for place in places if ends[place] < written[place]]
            if not hidden:
                return ends
            if asyncio.get_running_loop().time() > deadline:
                where = ", ".join(str(place.partition) for place in hidden)
                raise Unsettled(
                    f"a transaction of another producer has been open in {DEAD_LETTERS.name}, partition {where}, for "
                    f"{SETTLED_WITHIN_S:.0f} s, and what lies behind it cannot be seen: end that producer, and run it "
                    "again"
                )
            await asyncio.sleep(0.05)


def _plan(order: Order, found: Survey) -> Outcome:
    able = found.by_reason(replayable=True if order.verb == REPLAYED else None)
    every = found.by_reason()
    missing = [place for place in sorted(order.selection.places) if not found.is_outstanding(*place)]
    total = able.total()
    return Outcome(
        planned=total if order.limit is None else min(total, order.limit),
        left=every - able,
        outstanding=every.total(),
        not_outstanding=[f"{partition}:{offset}" for partition, offset in missing],
    )


async def _explain_left(settings: Settings, found: Survey, outcome: Outcome) -> None:
    if not outcome.left:
        return
    async for letter in outstanding(settings, found):
        if letter.obstacle is not None:
            outcome.examples.append(f"{letter.place}: {letter.obstacle}: {letter.remedy}")
            if len(outcome.examples) == min(MAX_EXAMPLES, outcome.left.total()):
                return


def _entry(order: Order, found: Survey, outcome: Outcome) -> dict[str, Any]:
    """The audit entry's body: what is about to be done. `by_reason` are all that the selection holds."""
    selection = order.selection
    reasons = found.by_reason(replayable=True if order.verb == REPLAYED else None)
    told = {
        "by": order.by,
        "comment": order.comment,
        "letters": outcome.planned,
        "by_reason": dict(reasons),
        "selection": {
            "reason": selection.reason,
            "since_ms": selection.since_ms,
            "places": [f"{partition}:{offset}" for partition, offset in sorted(selection.places)],
            "limit": order.limit,
        },
    }
    return {"context": told}


async def _chosen(settings: Settings, found: Survey, order: Order, count: int) -> AsyncIterator[Letter]:
    async for letter in outstanding(settings, found):
        if order.verb == DROPPED or letter.obstacle is None:
            yield letter
            count -= 1
            if not count:
                return


async def _batches(letters: AsyncIterator[Letter]) -> AsyncIterator[list[Letter]]:
    """Letters by at most `BATCH_LETTERS` and `BATCH_BYTES`; a letter over that is a batch of its own."""
    batch: list[Letter] = []
    size = 0
    async for letter in letters:
        if batch and (len(batch) == BATCH_LETTERS or size + letter.size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(letter)
        size += letter.size
    if batch:
        yield batch


async def _records(writer: Writer, letters: Sequence[Letter], order: Order, entry: str | None) -> list[Addressed]:
    marks = defaultdict[int, list[int]](list)
    records: list[Addressed] = []
    partitions = await writer.partitions(AUDIT_EVENTS.name) if order.verb == REPLAYED else set()
    for letter in letters:
        marks[letter.partition].append(letter.offset)
        if order.verb == REPLAYED:
            records.append(_replay(letter, partitions))
    headers = [(MARK, order.verb.encode()), (MARK_BY, order.by.encode())]
    for partition, offsets in marks.items():
        value = orjson.dumps({"offsets": offsets, "audit_entry": entry, "comment": order.comment})
        records.append(Addressed(DEAD_LETTERS.name, partition, None, value, headers))
    return records


def _replay(letter: Letter, partitions: set[int]) -> Addressed:
    """The letter as it goes back in: in its first partition, so that it stays in order with its key."""
    origin = letter.origin_partition
    headers = [(name, letter.headers[name]) for name in CONTENT_HEADERS if name in letter.headers]
    return Addressed(
        AUDIT_EVENTS.name,
        origin if origin in partitions else None,
        letter.key,
        letter.value or b"",
        [*headers, (OWNER, letter.owner.encode())],
    )
