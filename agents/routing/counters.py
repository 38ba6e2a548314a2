"""The router's accounting: every record that comes in is counted once on its way out.

`records_in == routed + filtered + duplicate + sampled_out + dead_lettered`, at any moment: a batch is counted once
Kafka has acknowledged all that came of it, and counted again when it is delivered again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

from agents.histogram import Histogram

STAGES = ("decide", "claim", "publish")
STAGE_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


@dataclass(slots=True)
class RouteReport:
    """What became of one batch. The five detail counters add up to `records_in`; the rest tells more about them."""

    messages: int = 0
    records_in: int = 0
    routed: Counter[str] = field(default_factory=Counter)
    """By classification."""
    filtered: Counter[str] = field(default_factory=Counter)
    """By classification."""
    duplicate: Counter[str] = field(default_factory=Counter)
    """By classification."""
    sampled_out: Counter[str] = field(default_factory=Counter)
    """By classification."""
    dead_lettered: Counter[str] = field(default_factory=Counter)
    """By reason."""
    scrubbed: Counter[str] = field(default_factory=Counter)
    """Findings by pattern, in the records that were scrubbed: those that went past the filter."""
    redelivered: int = 0
    """Routed records whose claim was already theirs."""
    id_conflict: int = 0
    """Routed records whose id was claimed for other content."""
    unclaimed: int = 0
    """Routed records that were not checked for duplicates (`on_outage="pass"`)."""
    claim_retries: int = 0
    """Attempts at claiming that failed before one succeeded."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by stage: decide, claim, publish."""
    trace_id: str | None = None
    """Of a followed message in the batch: the example of its figures."""

    def unaccounted(self) -> int:
        """Return how many records have no decision; 0 unless the router is wrong."""
        outcomes = (self.routed, self.filtered, self.duplicate, self.sampled_out, self.dead_lettered)
        return self.records_in - sum(outcome.total() for outcome in outcomes)


class CounterObserver(Protocol):
    """Told of every batch once it is acknowledged; telemetry binds it to metrics."""

    def on_batch(self, report: RouteReport) -> None:
        """Take note of a batch. Must be quick and must not raise."""


@dataclass(slots=True)
class Counters:
    """Totals since the worker started. The web server reads them in threads of its own, and never half a batch."""

    observer: CounterObserver | None = None
    batches: int = 0
    totals: RouteReport = field(default_factory=RouteReport)
    latency: dict[str, Histogram] = field(
        default_factory=lambda: {stage: Histogram(STAGE_BOUNDS_S) for stage in STAGES}
    )
    """Seconds a batch, by stage."""
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def apply(self, report: RouteReport) -> None:
        """Add an acknowledged batch."""
        with self._lock:
            self._add(report)
        if self.observer is not None:
            self.observer.on_batch(report)

    def _add(self, report: RouteReport) -> None:
        self.batches += 1
        totals = self.totals
        for name in ("messages", "records_in", "redelivered", "id_conflict", "unclaimed", "claim_retries"):
            setattr(totals, name, getattr(totals, name) + getattr(report, name))
        for name in _DETAILS:
            getattr(totals, name).update(getattr(report, name))
        for stage, spent in report.seconds.items():
            totals.seconds[stage] = totals.seconds.get(stage, 0.0) + spent
            if stage not in self.latency:
                self.latency[stage] = Histogram(STAGE_BOUNDS_S)
            self.latency[stage].observe(spent, report.trace_id)

    def snapshot(self) -> dict[str, Any]:
        """Return the totals as plain numbers, with the details under `by_...`, `scrubbed`, `seconds` and `latency`."""
        with self._lock:
            return self._snapshot()

    def _snapshot(self) -> dict[str, Any]:
        totals = self.totals
        return {
            "in": totals.records_in,
            "routed": totals.routed.total(),
            "filtered": totals.filtered.total(),
            "duplicate": totals.duplicate.total(),
            "sampled_out": totals.sampled_out.total(),
            "dead_lettered": totals.dead_lettered.total(),
            "messages": totals.messages,
            "batches": self.batches,
            "redelivered": totals.redelivered,
            "id_conflict": totals.id_conflict,
            "unclaimed": totals.unclaimed,
            "claim_retries": totals.claim_retries,
            "by_classification": {name: dict(getattr(totals, name)) for name in _BY_CLASSIFICATION},
            "by_reason": dict(totals.dead_lettered),
            "scrubbed": dict(totals.scrubbed),
            "seconds": dict(totals.seconds),
            "latency": {stage: histogram.snapshot() for stage, histogram in self.latency.items()},
        }


_BY_CLASSIFICATION = ("routed", "filtered", "duplicate", "sampled_out")
_DETAILS = (*_BY_CLASSIFICATION, "dead_lettered", "scrubbed")
