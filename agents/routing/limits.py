"""How many dead letters are too many: beyond these limits the worker stops instead of draining a topic into another."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeadLetterLimits:
    """When a worker stops because of its dead letters.

    Args:
        max_share: the share (0..1) of dead letters among the last `window` records; with a larger one the worker
            stops, so 1 sets no bound.
        window: how many of the last records the share is of.
        max_run: how many dead letters may come in a row on one partition; 0 sets no bound.
    """

    max_share: float = 0.5
    window: int = 10_000
    max_run: int = 5_000

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_share <= 1.0:
            raise ValueError(f"max_share is {self.max_share}; it must lie in 0..1")
        if self.window < 1:
            raise ValueError(f"window is {self.window}; the share must be of at least 1 record")
        if self.max_run < 0:
            raise ValueError(f"max_run is {self.max_run}; it must be a number of dead letters, or 0 for no bound")
