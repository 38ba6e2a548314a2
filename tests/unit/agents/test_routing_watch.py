"""The watch over dead letters: runs, shares, and what ends them."""

from __future__ import annotations

import pytest

from agents.routing.limits import DeadLetterLimits
from agents.routing.message import Halt, InboundMessage
from agents.routing.watch import DeadLetterWatch, TooManyDeadLetters


def at(offset: int, partition: int = 0) -> InboundMessage:
    return InboundMessage("in", partition, offset, b"")


def test_a_run_on_one_partition_is_bounded_and_a_good_record_ends_it() -> None:
    watch = DeadLetterWatch(DeadLetterLimits(max_run=3))
    for offset in range(3):
        watch.saw(at(offset), 1, 1)
    watch.check(3, 3)
    watch.saw(at(3), 5, 4)  # one of its five records is good
    assert not watch.runs
    for offset in range(4, 8):
        watch.saw(at(offset), 1, 1)
    with pytest.raises(TooManyDeadLetters, match=r"4 dead letters in a row up to in:0:7, over dead_letters.max_run=3"):
        watch.check(9, 8)


def test_runs_of_partitions_do_not_add_up() -> None:
    watch = DeadLetterWatch(DeadLetterLimits(max_run=3))
    for offset in range(3):
        for partition in range(4):
            watch.saw(at(offset, partition), 1, 1)
    watch.check(12, 12)


def test_a_run_may_be_unbounded() -> None:
    watch = DeadLetterWatch(DeadLetterLimits(max_run=0, window=1000))
    for offset in range(500):
        watch.saw(at(offset), 1, 1)
    watch.check(500, 500)


def test_a_share_is_taken_over_the_last_records_and_only_over_enough_of_them() -> None:
    watch = DeadLetterWatch(DeadLetterLimits(max_share=0.5, window=100))
    watch.check(90, 90)  # too few to speak of shares
    watch.check(100, 0)  # the bad ones leave the window
    watch.check(50, 50)
    with pytest.raises(TooManyDeadLetters, match=r"dead_letters\.max_share=0\.5"):
        watch.check(60, 60)


def test_limits_may_be_replaced_while_it_watches() -> None:
    watch = DeadLetterWatch(DeadLetterLimits(max_run=1))
    watch.saw(at(0), 2, 2)
    with pytest.raises(Halt):
        watch.check(2, 2)
    watch.limits = DeadLetterLimits(max_run=10)
    watch.check(0, 0)


@pytest.mark.parametrize(
    ("wrong", "name"), [({"max_share": 1.5}, "max_share"), ({"window": 0}, "window"), ({"max_run": -1}, "max_run")]
)
def test_limits_are_held_to_their_bounds(wrong: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is "):
        DeadLetterLimits(**wrong)  # type: ignore[arg-type]
