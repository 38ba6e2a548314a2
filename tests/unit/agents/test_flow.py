"""Histograms, and what an agent's loop tells of itself."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.flow import DELAY_BOUNDS_S, Flow
from agents.histogram import Histogram

BOUNDS = (0.5, 1.0, 2.0)


@given(st.lists(st.floats(0, 4) | st.sampled_from(BOUNDS)))
def test_a_histogram_counts_what_is_at_most_each_bound(values: list[float]) -> None:
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.observe(value)
    told = histogram.snapshot()
    below = {str(bound): sum(value <= bound for value in values) for bound in BOUNDS}
    assert told["buckets"] == below | {"+Inf": len(values)}
    assert told["count"] == len(values)
    assert told["sum"] == pytest.approx(sum(values))


@pytest.mark.parametrize("bounds", [(), (1.0, 1.0), (2.0, 1.0)])
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"bounds="):
        Histogram(bounds)


class Place(NamedTuple):
    topic: str
    partition: int


class Source:
    def lag(self) -> dict[Place, int]:
        places = [("in", 0, 5), ("in", 1, 0), ("out", 0, 2)]
        return {Place(topic, partition): behind for topic, partition, behind in places}

    def open_records(self) -> int:
        return 7


def chunk(*millis: int | None) -> Any:
    return SimpleNamespace(records=[SimpleNamespace(timestamp=stamp) for stamp in millis])


def test_a_loop_that_has_not_begun_has_nothing() -> None:
    told = Flow().snapshot()
    assert told["lag"] == {}
    assert (told["records_open"], told["batches_in_hand"]) == (0, 0)
    assert told["delay"]["oldest"]["count"] == told["delay"]["newest"]["count"] == 0


def test_lag_and_what_is_in_hand_are_those_of_the_moment() -> None:
    flow, batches = Flow(), deque([["event"]])
    flow.begin(Source(), batches)
    told = flow.snapshot()
    assert told["lag"] == {"in": {"0": 5, "1": 0}, "out": {"0": 2}}
    assert (told["records_open"], told["batches_in_hand"]) == (7, 1)
    batches.append(["another"])
    assert flow.snapshot()["batches_in_hand"] == 2


def test_delay_is_of_the_oldest_and_the_newest_message_of_a_batch() -> None:
    flow = Flow(clock=lambda: 100.0)
    flow.finished([chunk(97_000, 98_000), chunk(93_500, 99_700), chunk(99_000)])
    delay = flow.snapshot()["delay"]
    assert delay["oldest"]["sum"] == pytest.approx(6.5)
    assert delay["newest"]["sum"] == pytest.approx(0.3)
    assert delay["oldest"]["count"] == delay["newest"]["count"] == 1
    assert delay["oldest"]["buckets"]["5.0"] == 0
    assert delay["oldest"]["buckets"]["10.0"] == 1
    assert [*delay["oldest"]["buckets"]] == [*map(str, DELAY_BOUNDS_S), "+Inf"]


@pytest.mark.parametrize(
    ("chunks", "counted"),
    [([], 0), ([chunk(None)], 0), ([chunk(-1, -1)], 0), ([chunk(None), chunk(99_000)], 1), ([chunk(200_000)], 1)],
)
def test_odd_timestamps_neither_raise_nor_count_below_zero(chunks: list[Any], counted: int) -> None:
    flow = Flow(clock=lambda: 100.0)
    flow.finished(chunks)
    oldest = flow.snapshot()["delay"]["oldest"]
    assert oldest["count"] == counted
    assert oldest["sum"] >= 0
