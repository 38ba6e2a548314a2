"""When a cycle opens. Pure: counts and times in, a decision out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CountTrigger:
    """Open when `min_examples` wait and none has come for `settle_s`, so that a burst is taken whole.

    A stream that never pauses is not kept waiting: at twice `min_examples` the pause no longer counts.
    `cooldown_s` after the model's last cycle nothing opens.
    """

    min_examples: int
    settle_s: float
    cooldown_s: float

    def is_due(self, waiting: int, since_last_example_s: float, since_last_cycle_s: float | None) -> bool:
        """Whether a cycle should open now."""
        if since_last_cycle_s is not None and since_last_cycle_s < self.cooldown_s:
            return False
        if waiting < self.min_examples:
            return False
        return since_last_example_s >= self.settle_s or waiting >= 2 * self.min_examples
