"""Geometry of the pages' plots: pure functions from figures to SVG coordinates; the templates draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

WIDTH, HEIGHT = 600.0, 100.0
_FLOOR = 0.8
"""The lowest value that a plot of adherence always shows: what matters lies between it and 1."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line in a box of `WIDTH` by `HEIGHT`, for SVG's `points`; `low` is the value at its bottom, 1 at its top."""

    points: str
    low: float
    threshold_y: float
    first: str
    last: str


def adherence_line(points: Sequence[tuple[str, float]], threshold: float) -> Line | None:
    """The line of (minute, share) in time order; None for fewer than two points."""
    if len(points) < 2:
        return None
    low = min(_FLOOR, int(min(value for _, value in points) * 10) / 10)
    start, end = _seconds(points[0][0]), _seconds(points[-1][0])
    span = max(1.0, end - start)
    drawn = " ".join(
        f"{(_seconds(minute) - start) / span * WIDTH:.1f},{_y(value, low):.1f}" for minute, value in points
    )
    return Line(drawn, low, round(_y(threshold, low), 1), points[0][0], points[-1][0])


@dataclass(frozen=True, slots=True)
class Bar:
    """A share from 0 to 1 with its interval, in per cent of the box's width."""

    name: str
    value: float
    interval: tuple[float, float] | None

    @property
    def width(self) -> float:
        """Of the bar."""
        return round(100 * min(1.0, max(0.0, self.value)), 2)

    @property
    def low(self) -> float:
        """Where the interval begins."""
        return round(100 * (self.interval[0] if self.interval else self.value), 2)

    @property
    def high(self) -> float:
        """Where the interval ends."""
        return round(100 * (self.interval[1] if self.interval else self.value), 2)


def bars(compared: object) -> list[Bar]:
    """One bar for each model of an evaluation's comparison (`{"base": share, ..., "interval": {...}, "n": n}`)."""
    if not isinstance(compared, dict):
        return []
    intervals = compared.get("interval")
    intervals = intervals if isinstance(intervals, dict) else {}
    found = []
    for name, value in compared.items():
        if name in {"n", "interval"} or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        given = intervals.get(name)
        interval = (float(given[0]), float(given[1])) if isinstance(given, list | tuple) and len(given) == 2 else None
        found.append(Bar(name, float(value), interval))
    return found


def _y(value: float, low: float) -> float:
    return (1.0 - value) / (1.0 - low) * HEIGHT


def _seconds(minute: str) -> float:
    return datetime.fromisoformat(f"{minute}:00+00:00").timestamp()
