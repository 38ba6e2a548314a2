"""How far a partition may be committed, whatever happens to its chunks, and in whatever order."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.transport import Chunk
from app.transport.chunks import Positions

PLACES = ("a", "b")
places = st.sampled_from(PLACES)
gaps = st.integers(0, 3)


def chunk(*offsets: int) -> Chunk:
    return Chunk([SimpleNamespace(offset=offset) for offset in offsets])


@dataclass
class Model:
    """What an era of a partition has seen."""

    era: int
    at: int
    chunks: list[Chunk] = field(default_factory=list)
    told_to: int | None = None
    highest: int | None = None

    @property
    def open(self) -> list[Chunk]:
        return [chunk for chunk in self.chunks if not chunk.done]


class Partitions(RuleBasedStateMachine):
    """Reads two partitions on, moves them, gives them up, and finishes chunks in any order, also late."""

    def __init__(self) -> None:
        super().__init__()
        self.positions: Positions[str] = Positions()
        self.models: dict[str, Model] = {}
        self.out: list[Chunk] = []
        self.eras = 0

    @rule(place=places, start=st.integers(0, 20))
    def move(self, place: str, start: int) -> None:
        self.eras += 1
        self.models[place] = Model(self.eras, start)

    @precondition(lambda self: self.models)
    @rule(data=st.data(), gap=gaps, steps=st.lists(st.integers(1, 3), min_size=1, max_size=4))
    def add(self, data: st.DataObject, gap: int, steps: list[int]) -> None:
        place = data.draw(st.sampled_from(sorted(self.models)))
        model = self.models[place]
        offsets = [model.at + gap]
        for step in steps[1:]:
            offsets.append(offsets[-1] + step)
        added = chunk(*offsets)
        self.positions.add(place, model.era, added)
        model.at = added.next_offset
        model.chunks.append(added)
        self.out.append(added)

    @precondition(lambda self: self.models)
    @rule(data=st.data(), gap=gaps)
    def read_to(self, data: st.DataObject, gap: int) -> None:
        place = data.draw(st.sampled_from(sorted(self.models)))
        model = self.models[place]
        model.at += gap
        model.told_to = model.at
        self.positions.read_to(place, model.era, model.at)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.out.pop(data.draw(st.integers(0, len(self.out) - 1))).done = True

    @rule(gone=st.sets(places))
    def forget(self, gone: set[str]) -> None:
        self.positions.forget(gone)
        for place in gone:
            self.models.pop(place, None)

    @precondition(lambda self: any(model.chunks for model in self.models.values()))
    @rule(data=st.data(), back=st.integers(1, 5))
    def go_back_unsaid(self, data: st.DataObject, back: int) -> None:
        place = data.draw(st.sampled_from([place for place, model in sorted(self.models.items()) if model.chunks]))
        model = self.models[place]
        with pytest.raises(ValueError, match="all before"):
            self.positions.add(place, model.era, chunk(model.at - back, model.at + 10))

    @invariant()
    def commits_no_further_than_the_first_open_record(self) -> None:
        for place, model in self.models.items():
            if self.positions.era(place) != model.era:
                continue  # moved, and not read since: the consumer does not ask
            offset = self.positions.committable(place)
            if offset is None:
                assert not model.chunks or not model.chunks[0].done
                assert model.told_to is None or model.open
                continue
            assert all(offset <= open_.records[0].offset for open_ in model.open)
            assert offset <= model.at
            assert model.highest is None or offset >= model.highest, "it went back"
            model.highest = offset
            if not model.open:
                assert offset == max(model.told_to or 0, model.chunks[-1].next_offset if model.chunks else 0)

    @invariant()
    def counts_what_is_out(self) -> None:
        read = [model for place, model in self.models.items() if self.positions.era(place) == model.era]
        moved = self.positions.places()
        if all(self.positions.era(place) == self.models[place].era for place in moved):
            assert self.positions.open_records() == sum(len(c.records) for model in read for c in model.open)


Partitions.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestPartitions = Partitions.TestCase


def test_chunks_done_out_of_order_wait_for_the_first() -> None:
    positions: Positions[str] = Positions()
    first, second, third = chunk(0, 1), chunk(5), chunk(6, 9)
    for one in (first, second, third):
        positions.add("a", 1, one)
    third.done = True
    assert positions.committable("a") is None
    first.done = True
    assert positions.committable("a") == 2
    second.done = True
    assert positions.committable("a") == 10


def test_what_follows_the_last_record_is_done_once_nothing_is_out() -> None:
    positions: Positions[str] = Positions()
    only = chunk(3)
    positions.add("a", 1, only)
    positions.read_to("a", 1, 8)
    assert positions.committable("a") is None
    only.done = True
    assert positions.committable("a") == 8


def test_a_chunk_of_an_earlier_era_commits_nothing() -> None:
    positions: Positions[str] = Positions()
    before, after = chunk(0, 1, 2), chunk(1, 2)
    positions.add("a", 1, before)
    positions.add("a", 2, after)
    before.done = True
    assert positions.committable("a") is None
    after.done = True
    assert positions.committable("a") == 3


def test_an_era_that_is_over_is_refused() -> None:
    positions: Positions[str] = Positions()
    positions.read_to("a", 2, 10)
    with pytest.raises(ValueError, match="era 1 is over"):
        positions.add("a", 1, chunk(20))
    with pytest.raises(ValueError, match="era 1 is over"):
        positions.read_to("a", 1, 20)
    assert positions.committable("a") == 10


def test_a_move_of_one_partition_leaves_the_other_as_it_is() -> None:
    positions: Positions[str] = Positions()
    held = chunk(0, 1)
    positions.add("a", 1, held)
    positions.read_to("a", 1, 2)
    positions.add("b", 2, chunk(0))
    positions.add("b", 3, chunk(7))
    positions.read_to("a", 1, 2)
    assert positions.committable("a") is None
    held.done = True
    assert positions.committable("a") == 2
