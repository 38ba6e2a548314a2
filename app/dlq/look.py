"""Reading dead letters without changing anything."""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing
from typing import NamedTuple

from aiokafka import TopicPartition

from agents.routing.dead_letters import is_mark
from app.dlq.letters import Letter
from app.dlq.survey import OUTSTANDING, Selection, letters, outstanding, read_mark, survey
from app.history import open_reader, partitions_of, read_range
from app.settings import Settings
from app.topics import DEAD_LETTERS


class Found(NamedTuple):
    """A letter, its state (`outstanding`, `replayed`, `dropped`), and who brought it there, where that was asked."""

    letter: Letter
    state: str
    by: str = ""


async def summary(settings: Settings, selection: Selection) -> Counter[str]:
    """How many letters of the selection are outstanding, by reason."""
    return (await survey(settings, selection)).by_reason()


async def listing(settings: Settings, selection: Selection, limit: int, *, every: bool) -> tuple[list[Found], bool]:
    """The first `limit` letters of the selection that are outstanding (or `every` one), and whether there are more."""
    found: list[Found] = []
    seen = await survey(settings, selection)
    async with aclosing(letters(settings, seen) if every else outstanding(settings, seen)) as chosen:
        async for letter in chosen:
            if len(found) == limit:
                return found, True
            found.append(Found(letter.without_value(), seen.partitions[letter.partition].state(letter.offset)))
    return found, False


async def find(settings: Settings, partition: int, offset: int) -> Found | None:
    """The letter at a place; None where there is none."""
    async with open_reader(settings) as reader:
        place = TopicPartition(DEAD_LETTERS.name, partition)
        places = await partitions_of(reader, DEAD_LETTERS.name)
        if place not in places:
            return None
        start, end = (await reader.beginning_offsets([place]))[place], (await reader.end_offsets([place]))[place]
    if not start <= offset < end:
        return None
    letter: Letter | None = None
    async with aclosing(read_range(settings, place, offset, end)) as records:
        async for record in records:
            if letter is None:
                if record.offset != offset or is_mark(record.headers):
                    return None
                letter = Letter.of(record)
            elif is_mark(record.headers):
                mark = read_mark(record)
                if offset in mark.offsets:
                    return Found(letter, mark.kind, mark.by)
    return None if letter is None else Found(letter, OUTSTANDING)
