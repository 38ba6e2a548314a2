"""A worker's figures as metrics, read from its counters when Prometheus scrapes: counting costs the hot path nothing.

What the metrics are called and mean stands in `catalogue`. The monitoring agent's, which follow the engines, are told
of items as they come: `agents.monitoring.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from agents.routing.message import Reason
from app.store.alerts import CHAMPION_ROLLED_BACK
from app.store.database import DatabaseUnavailable
from app.telemetry.catalogue import BoundedLabels, Family, family
from models.cycle import CycleState
from models.event import Classification

Snapshot = Callable[[], Mapping[str, Any]]

OUTCOMES = ("routed", "filtered", "duplicate", "sampled_out", "dead_lettered")
MAX_NAMES = 100
"""Models and domains that have a series of their own."""
JOBS = ("revise", "train", "evaluate")

_ROUTING_COUNTS = ("messages", "batches", "redelivered", "id_conflict", "unclaimed", "claim_retries")


class RoutingCollector(Collector):
    """Routing: every record that came in, and where it went; how long its batches took."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now, all of one moment. Labels that are known beforehand start at 0."""
        counts = self.snapshot()
        yield family("flywheel_routing_records_in_total").add(counts["in"]).metric
        yield _filled("flywheel_routing_records_out_total", [(name, counts[name]) for name in OUTCOMES])
        for name in _ROUTING_COUNTS:
            yield family(f"flywheel_routing_{name}_total").add(counts[name]).metric
        classified = [
            (outcome, kind.value, found.get(kind.value, 0))
            for outcome, found in counts["by_classification"].items()
            for kind in Classification
        ]
        yield _filled("flywheel_routing_classified_total", classified)
        reasons = [(reason.value, counts["by_reason"].get(reason.value, 0)) for reason in Reason]
        yield _filled("flywheel_routing_dead_letters_total", reasons)
        yield _filled("flywheel_routing_scrubbed_total", sorted(counts["scrubbed"].items()))
        yield _histograms("flywheel_routing_stage_seconds", counts["latency"])
        if "live" in counts:
            yield family("flywheel_routing_settings_revision").add(counts["live"]["revision"]).metric


class ConsumerCollector(Collector):
    """An agent's reading of Kafka: how far behind it is, what it has in hand, how late it is done."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now."""
        flow = self.snapshot()
        lag = family("flywheel_consumer_lag")
        for topic, partitions in sorted(flow["lag"].items()):
            for partition, behind in partitions.items():
                lag.add(behind, topic, partition)
        yield lag.metric
        yield family("flywheel_consumer_records_open").add(flow["records_open"]).metric
        yield family("flywheel_consumer_batches_in_hand").add(flow["batches_in_hand"]).metric
        yield family("flywheel_consumer_last_commit_timestamp_seconds").add(flow["last_commit"]).metric
        yield _histograms("flywheel_consumer_delay_seconds", flow["delay"])


class TraceCollector(Collector):
    """Traces: what became of ended spans."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now."""
        counts = self.snapshot()
        outcomes = ("exported", "failed", "dropped")
        yield _filled("flywheel_trace_spans_total", [(name, counts[name]) for name in outcomes])
        yield family("flywheel_trace_spans_waiting").add(counts["waiting"]).metric


class ClientCollector(Collector):
    """How long Redis, Kafka and the store took to answer."""

    def __init__(self, snapshot: Callable[[], Mapping[tuple[str, str], Any]]) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now."""
        calls = family("flywheel_client_seconds")
        for (client, operation), found in sorted(self.snapshot().items()):
            calls.add_histogram(found, client, operation)
        yield calls.metric


class EventLoopCollector(Collector):
    """A worker's event loop: how many tasks it holds. One that grows without end is a leak."""

    def __init__(self, tasks: Callable[[], int]) -> None:
        self.tasks = tasks

    def collect(self) -> Iterable[Metric]:
        """The metric as of now."""
        yield family("flywheel_event_loop_tasks").add(self.tasks()).metric


class CurationCollector(Collector):
    """Curation: what became of routed events."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now."""
        counts = dict(self.snapshot())
        found = counts.pop("pii_found", 0)
        yield _filled("flywheel_curation_records_total", sorted(counts.items()))
        yield family("flywheel_pii_downstream_total").add(found, "curation").metric


class TrainingCollector(Collector):
    """Training: the job at work, and what its guard found. Never a loss: it would tell of single records."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now; zeros while no job is at work."""
        told = self.snapshot()
        stage = told.get("stage")
        for name, key in (("step", "done"), ("steps", "total")):
            rows = [(job, told.get(key, 0) if job == stage else 0) for job in JOBS]
            yield _filled(f"flywheel_training_{name}", rows)
        yield family("flywheel_training_tokens_per_second").add(told.get("tokens_per_s", 0.0)).metric
        yield family("flywheel_training_gpu_memory_bytes").add(told.get("gpu_memory_bytes", 0)).metric
        yield family("flywheel_pii_downstream_total").add(told.get("pii_found", 0), "training").metric


class StoreCollector(Collector):
    """The store: cycles and how they stand, adherence, champions, alerts, messages that wait in the outbox."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._bounded = BoundedLabels(MAX_NAMES)

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now."""
        try:
            counts = self.snapshot()
        except (SQLAlchemyError, DatabaseUnavailable):
            yield family("flywheel_store_up").add(0).metric
            return
        yield family("flywheel_store_up").add(1).metric
        states = [state.value for state in CycleState]
        yield _filled("flywheel_cycles", [(state, counts["cycles"].get(state, 0)) for state in states])
        open_cycles = counts["open_cycles"]
        for name, key in (("age", "age_s"), ("idle", "idle_s")):
            rows = [(state, open_cycles.get(state, {}).get(key, 0.0)) for state in states]
            yield _filled(f"flywheel_cycle_{name}_seconds", rows)
        yield family("flywheel_cycles_halted").add(int(counts["halted"])).metric
        yield from self._adherence(counts["adherence"])
        yield family("flywheel_outbox_pending").add(counts["outbox"]).metric
        yield family("flywheel_outbox_oldest_seconds").add(counts["outbox_oldest_s"]).metric
        yield family("flywheel_outbox_refused").add(counts["outbox_refused"]).metric
        yield from self._champions(counts["champions"])
        rollbacks = [
            (self._bounded("model_id", row["model_id"]), row["kind"], row["count"]) for row in counts["rollbacks"]
        ]
        yield _filled("flywheel_champion_rollbacks_total", rollbacks)
        kinds = sorted({CHAMPION_ROLLED_BACK, *counts["alerts"]})
        yield _filled("flywheel_alerts_total", [(kind, counts["alerts"].get(kind, 0)) for kind in kinds])

    def _champions(self, rows: Iterable[Mapping[str, Any]]) -> Iterable[Metric]:
        found = [(self._bounded("model_id", row["model_id"]), row) for row in rows]
        yield _filled("flywheel_champion_adherence", [(name, row["adherence"]) for name, row in found])
        yield _filled("flywheel_champion_evaluations", [(name, row["evaluations"]) for name, row in found])

    def _adherence(self, rows: Iterable[tuple[str, str, float, float]]) -> Iterable[Metric]:
        means, weights = family("flywheel_adherence"), family("flywheel_adherence_weight")
        shown: set[tuple[str, str]] = set()
        for model_id, domain, mean, weight in rows:
            place = self._bounded("model_id", model_id), self._bounded("domain", domain)
            if place not in shown:
                shown.add(place)
                means.add(mean, *place)
                weights.add(weight, *place)
        yield means.metric
        yield weights.metric


class MirrorCollector(Collector):
    """The registry's mirror in MLflow, as this worker keeps it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now."""
        counts = self.snapshot()
        yield family("flywheel_mirror_up").add(counts["up"]).metric
        yield family("flywheel_mirror_pending").add(counts["pending"]).metric
        yield family("flywheel_mirror_shown_total").add(counts["shown"]).metric
        yield family("flywheel_mirror_failed_total").add(counts["failed"]).metric


def new_registry() -> CollectorRegistry:
    """One registry a worker, so that several in one process (tests) do not collide."""
    return CollectorRegistry(auto_describe=False)


def _filled(name: str, rows: Iterable[tuple[Any, ...]]) -> Metric:
    """A counter or gauge; a row is its labels, then its value."""
    filled: Family = family(name)
    for *labels, value in rows:
        filled.add(value, *labels)
    metric: Metric = filled.metric
    return metric


def _histograms(name: str, rows: Mapping[str, Mapping[str, Any]]) -> Metric:
    """A histogram, from snapshots of `agents.histogram.Histogram` by its one label."""
    filled = family(name)
    for label, found in rows.items():
        filled.add_histogram(found, label)
    metric: Metric = filled.metric
    return metric
