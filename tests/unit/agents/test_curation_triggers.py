"""When a cycle opens, and by what."""

from __future__ import annotations

import pytest

from agents.curation.triggers import AgeTrigger, CountTrigger, DriftTrigger, Triggers, Waiting, facts
from models.cycle import TriggerType

TRIGGERS = Triggers(CountTrigger(10, 30.0), AgeTrigger(4, 3600.0), DriftTrigger(4, 0.95, 200.0), cooldown_s=600.0)


@pytest.mark.parametrize(
    ("units", "quiet_s", "since_cycle_s", "due"),
    [
        (9, 1000.0, None, False),
        (10, 30.0, None, True),
        (10, 29.9, None, False),  # a burst is taken whole
        (19, 0.0, None, False),
        (20, 0.0, None, True),  # a stream that never pauses is not kept waiting
        (10, 30.0, 599.9, False),
        (1000, 1000.0, 599.9, False),
        (10, 30.0, 600.0, True),
    ],
)
def test_enough_examples_open_a_cycle(units: int, quiet_s: float, since_cycle_s: float | None, due: bool) -> None:
    waiting = Waiting(units, quiet_s, oldest_s=0.0, since_cycle_s=since_cycle_s)
    assert TRIGGERS.due(waiting) is (TriggerType.COUNT if due else None)


@pytest.mark.parametrize(
    ("units", "oldest_s", "due"), [(3, 9999.0, False), (4, 3599.0, False), (4, 3600.0, True), (9, 4000.0, True)]
)
def test_an_old_example_opens_a_cycle(units: int, oldest_s: float, due: bool) -> None:
    waiting = Waiting(units, quiet_s=0.0, oldest_s=oldest_s)
    assert TRIGGERS.due(waiting) is (TriggerType.AGE if due else None)


@pytest.mark.parametrize(
    ("units", "adherence", "weight", "due"),
    [
        (4, 0.9499, 200.0, True),
        (4, 0.95, 200.0, False),
        (4, 0.5, 199.9, False),  # too few evaluations to say
        (3, 0.5, 1000.0, False),
        (4, None, 0.0, False),
    ],
)
def test_low_adherence_opens_a_cycle(units: int, adherence: float | None, weight: float, due: bool) -> None:
    waiting = Waiting(units, quiet_s=0.0, oldest_s=0.0, adherence=adherence, adherence_weight=weight)
    assert TRIGGERS.due(waiting) is (TriggerType.DRIFT if due else None)


def test_the_most_urgent_is_named_and_all_wait_for_the_cool_down() -> None:
    everything = Waiting(1000, 1000.0, 9999.0, None, 0.1, 1000.0)
    assert TRIGGERS.due(everything) is TriggerType.DRIFT
    assert TRIGGERS.due(Waiting(1000, 1000.0, 9999.0, 599.0, 0.1, 1000.0)) is None
    assert Triggers(CountTrigger(10, 30.0)).due(Waiting(4, 0.0, 9999.0, None, 0.1, 1000.0)) is None


def test_a_cycle_says_why_it_opened() -> None:
    assert facts(Waiting(3, 1.0, 2.345)) == {"waiting_units": 3, "oldest_s": 2.3}
    told = facts(Waiting(3, 1.0, 2.0, None, 0.91234, 250.04))
    assert told == {"waiting_units": 3, "oldest_s": 2.0, "adherence": 0.9123, "adherence_weight": 250.0}
