"""Whether a measured series is flat: the slope of a straight line through it, against a stated tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression

WARM_UP = 1 / 3
"""This share of the samples, the first, is left out: heaps and pools fill, code is compiled."""


@dataclass(frozen=True)
class Verdict:
    """A series after its warm-up: its mean, and by how much the line through it rises over what was measured."""

    mean: float
    rise: float
    allowed: float

    @property
    def flat(self) -> bool:
        """Whether it rises by no more than is allowed. Falling is no fault."""
        return self.rise <= self.allowed


def judge(times: Sequence[float], values: Sequence[float], share: float, least: float) -> Verdict:
    """Judge a series; it may rise by `share` of its mean, or by `least` in its own unit if that is more.

    Raises `ValueError` with fewer than four samples after the warm-up.
    """
    start = int(len(values) * WARM_UP)
    kept, at = values[start:], times[start:]
    if len(kept) < 4:
        raise ValueError(f"{len(kept)} samples after the warm-up are too few for a slope: measure longer")
    mean = fmean(kept)
    rise = linear_regression(at, kept).slope * (at[-1] - at[0])
    return Verdict(mean, rise, max(share * abs(mean), least))
