"""Faust's sensors as metrics in the worker's own registry.

Not Faust's own Prometheus sensor: it names metrics after the app id, so that no query fits all roles, and measures in
milliseconds. This one is told of chunks and commits, never of single records.
"""

# ruff: noqa: ARG002 - the arguments are those that Faust gives

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Any

import faust
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from agents.histogram import Histogram
from app.telemetry.catalogue import family

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class FaustSensor(faust.Sensor):  # type: ignore[misc]  # Faust is untyped here
    """Counts what Faust tells; `figures` is what Prometheus reads, in a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.figures = FaustFigures()

    def on_message_in(self, tp: Any, offset: int, message: Any) -> None:
        """A chunk came in."""
        self.figures.count("events", tp.topic)

    def on_commit_initiated(self, consumer: Any) -> float:
        """A commit begins."""
        return time.perf_counter()

    def on_commit_completed(self, consumer: Any, state: Any) -> None:
        """It is through."""
        self.figures.count("commits")
        self.figures.observe("commit", time.perf_counter() - float(state))

    def on_assignment_completed(self, assignor: Any, state: Any) -> None:
        """Partitions were assigned."""
        self.figures.count("assignments", "completed")

    def on_assignment_error(self, assignor: Any, state: Any, exc: BaseException) -> None:
        """They could not be."""
        self.figures.count("assignments", "failed")

    def on_rebalance_start(self, app: Any) -> dict[str, float]:
        """A rebalance begins."""
        self.figures.count("rebalances")
        return {"began": time.perf_counter()}

    def on_rebalance_end(self, app: Any, state: Mapping[str, float]) -> None:
        """It is over."""
        self.figures.observe("rebalance", time.perf_counter() - state["began"])


class FaustFigures(Collector):
    """The sensor's figures as metrics."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._times = {name: Histogram(BOUNDS_S) for name in ("commit", "rebalance")}

    def count(self, what: str, label: str = "") -> None:
        """One more."""
        with self._lock:
            self._counts[what, label] += 1

    def observe(self, what: str, seconds: float) -> None:
        """It took so long."""
        with self._lock:
            self._times[what].observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now."""
        with self._lock:
            counts = Counter(self._counts)
            times = {name: histogram.snapshot() for name, histogram in self._times.items()}
        events = family("flywheel_faust_events_total")
        for (what, topic), count in sorted(counts.items()):
            if what == "events":
                events.add(count, topic)
        yield events.metric
        for what in ("commits", "rebalances"):
            yield family(f"flywheel_faust_{what}_total").add(counts[what, ""]).metric
        assignments = family("flywheel_faust_assignments_total")
        for outcome in ("completed", "failed"):
            assignments.add(counts["assignments", outcome], outcome)
        yield assignments.metric
        for name, found in times.items():
            yield family(f"flywheel_faust_{name}_seconds").add_histogram(found).metric
