"""When a cycle opens. Pure: counts, times and estimates in, a decision out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.cycle import TriggerType


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for a cycle of one model and domain.

    `units`: subjects with new examples, and new examples without subject. `quiet_s`: since the last example came.
    `oldest_s`: age of the oldest. `since_cycle_s`: since the model's last cycle ended, None before its first.
    `adherence` and `adherence_weight`: the estimate and the evaluations it rests on; None and 0 without any.
    """

    units: int
    quiet_s: float
    oldest_s: float
    since_cycle_s: float | None = None
    adherence: float | None = None
    adherence_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class CountTrigger:
    """Open when `min_examples` units wait and no example has come for `settle_s`, so that a burst is taken whole.

    A stream that never pauses is not kept waiting: at twice `min_examples` the pause no longer counts.
    """

    min_examples: int
    settle_s: float

    def is_due(self, waiting: Waiting) -> bool:
        """Whether a cycle should open now."""
        if waiting.units < self.min_examples:
            return False
        return waiting.quiet_s >= self.settle_s or waiting.units >= 2 * self.min_examples


@dataclass(frozen=True, slots=True)
class AgeTrigger:
    """Open when the oldest example has waited for `max_age_s` and `min_examples` units are there."""

    min_examples: int
    max_age_s: float

    def is_due(self, waiting: Waiting) -> bool:
        """Whether a cycle should open now."""
        return waiting.units >= self.min_examples and waiting.oldest_s >= self.max_age_s


@dataclass(frozen=True, slots=True)
class DriftTrigger:
    """Open when adherence over `min_weight` evaluations is below `threshold`, and `min_examples` units are there."""

    min_examples: int
    threshold: float
    min_weight: float

    def is_due(self, waiting: Waiting) -> bool:
        """Whether a cycle should open now."""
        if waiting.units < self.min_examples or waiting.adherence is None:
            return False
        return waiting.adherence_weight >= self.min_weight and waiting.adherence < self.threshold


@dataclass(frozen=True, slots=True)
class Triggers:
    """All of them, and the `cooldown_s` after a model's last cycle in which none opens another."""

    count: CountTrigger
    age: AgeTrigger | None = None
    drift: DriftTrigger | None = None
    cooldown_s: float = 0.0

    def is_cooling(self, since_cycle_s: float | None) -> bool:
        """Whether a model's last cycle ended so lately that none opens, whatever waits; None before its first."""
        return since_cycle_s is not None and since_cycle_s < self.cooldown_s

    def due(self, waiting: Waiting) -> TriggerType | None:
        """What opens a cycle now, the most urgent first; None where nothing does."""
        if self.is_cooling(waiting.since_cycle_s):
            return None
        if self.drift is not None and self.drift.is_due(waiting):
            return TriggerType.DRIFT
        if self.count.is_due(waiting):
            return TriggerType.COUNT
        if self.age is not None and self.age.is_due(waiting):
            return TriggerType.AGE
        return None


def facts(waiting: Waiting) -> dict[str, Any]:
    """What a cycle that opens by itself says of why."""
    known: dict[str, Any] = {"waiting_units": waiting.units, "oldest_s": round(waiting.oldest_s, 1)}
    if waiting.adherence is not None:
        known |= {"adherence": round(waiting.adherence, 4), "adherence_weight": round(waiting.adherence_weight, 1)}
    return known
