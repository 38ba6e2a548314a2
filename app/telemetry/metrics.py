"""The catalogue of a worker's own metrics: every name, type, label and meaning stands here.

Figures are read from the workers' counters when Prometheus scrapes, so counting costs the hot path nothing. The
monitoring agent's metrics, which follow the engines, stand in `agents.monitoring.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from agents.routing.message import Reason
from app.store.database import DatabaseUnavailable
from models.event import Classification

Snapshot = Callable[[], Mapping[str, Any]]

OUTCOMES = ("routed", "filtered", "duplicate", "sampled_out", "dead_lettered")

_ROUTING_COUNTS = {
    "messages": "Kafka messages routed.",
    "batches": "Batches routed.",
    "redelivered": "Records routed again after a redelivery.",
    "id_conflict": "Records whose id was claimed for other content; routed all the same.",
    "unclaimed": "Records routed without a check for duplicates, because Redis was away.",
    "claim_retries": "Attempts at claiming that found no Redis.",
}


class RoutingCollector(Collector):
    """Routing: every record that came in, and where it went; how long its batches took."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now, all of one moment."""
        counts = self.snapshot()
        yield CounterMetricFamily(
            "flywheel_routing_records_in", "Records decoded, or counted as one when undecodable.", value=counts["in"]
        )
        outcomes = [(name, counts[name]) for name in OUTCOMES]
        yield _counters("records_out", "What became of records; adds up to records_in.", ["outcome"], outcomes)
        for name, help_text in _ROUTING_COUNTS.items():
            yield CounterMetricFamily(f"flywheel_routing_{name}", help_text, value=counts[name])
        classified = [
            (outcome, kind.value, found.get(kind.value, 0))
            for outcome, found in counts["by_classification"].items()
            for kind in Classification
        ]
        labels = ["outcome", "classification"]
        yield _counters("classified", "Classified records by what became of them.", labels, classified)
        reasons = [(reason.value, counts["by_reason"].get(reason.value, 0)) for reason in Reason]
        yield _counters("dead_letters", "Records that can never be routed.", ["reason"], reasons)
        scrubbed = sorted(counts["scrubbed"].items())
        yield _counters("scrubbed", "Findings of personal data that were removed.", ["pattern"], scrubbed)
        yield _histograms(
            "flywheel_routing_stage_seconds", "Time a batch spent in a stage.", "stage", counts["latency"]
        )
        if "live" in counts:
            yield GaugeMetricFamily(
                "flywheel_routing_settings_revision",
                "Revision of the live settings in force; 0 for the configured ones.",
                value=counts["live"]["revision"],
            )


class ConsumerCollector(Collector):
    """An agent's reading of Kafka: how far behind it is, what it has in hand, how late it is done."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now."""
        flow = self.snapshot()
        lag = GaugeMetricFamily(
            "flywheel_consumer_lag", "Offsets between what is committed and the end.", labels=["topic", "partition"]
        )
        for topic, partitions in sorted(flow["lag"].items()):
            for partition, behind in partitions.items():
                lag.add_metric([topic, partition], behind)
        yield lag
        yield GaugeMetricFamily(
            "flywheel_consumer_records_open", "Kafka messages fetched and not yet done.", value=flow["records_open"]
        )
        yield GaugeMetricFamily(
            "flywheel_consumer_batches_in_hand", "Batches taken and not yet done.", value=flow["batches_in_hand"]
        )
        yield _histograms(
            "flywheel_consumer_delay_seconds",
            "From Kafka's timestamp of a batch's oldest and newest message until all that came of the batch is safe.",
            "message",
            flow["delay"],
        )


class TraceCollector(Collector):
    """Traces: `flywheel_trace_spans_total{outcome}`."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now."""
        counts = self.snapshot()
        spans = CounterMetricFamily(
            "flywheel_trace_spans", "Ended spans by what became of them; routing loses nothing.", labels=["outcome"]
        )
        for outcome in ("exported", "failed", "dropped"):
            spans.add_metric([outcome], counts[outcome])
        yield spans
        yield GaugeMetricFamily("flywheel_trace_spans_waiting", "Spans not delivered yet.", value=counts["waiting"])


class CurationCollector(Collector):
    """Curation: `flywheel_curation_records_total{outcome}`."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now."""
        family = CounterMetricFamily(
            "flywheel_curation_records", "Routed events by what became of them.", labels=["outcome"]
        )
        for outcome, count in sorted(self.snapshot().items()):
            family.add_metric([outcome], count)
        yield family


class StoreCollector(Collector):
    """The store: cycles by state, messages that wait in the outbox."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now."""
        help_text = "Whether the store answered this scrape."
        try:
            counts = self.snapshot()
        except (SQLAlchemyError, DatabaseUnavailable):
            yield GaugeMetricFamily("flywheel_store_up", help_text, value=0)
            return
        yield GaugeMetricFamily("flywheel_store_up", help_text, value=1)
        states = GaugeMetricFamily("flywheel_cycles", "Optimization cycles by state.", labels=["state"])
        for state, count in sorted(counts["cycles"].items()):
            states.add_metric([state], count)
        yield states
        yield GaugeMetricFamily(
            "flywheel_outbox_pending", "Messages that wait for the audit engine or Kafka.", value=counts["outbox"]
        )
        yield GaugeMetricFamily(
            "flywheel_outbox_refused", "Messages that the receiver will never take.", value=counts["outbox_refused"]
        )


def new_registry() -> CollectorRegistry:
    """One registry a worker, so that several in one process (tests) do not collide."""
    return CollectorRegistry(auto_describe=False)


def _counters(name: str, help_text: str, labels: list[str], rows: Iterable[tuple[Any, ...]]) -> CounterMetricFamily:
    """A counter of the router; a row is its labels, then its value.

    Labels that are known beforehand start at 0, or Prometheus does not see their first increase.
    """
    family = CounterMetricFamily(f"flywheel_routing_{name}", help_text, labels=labels)
    for *row, value in rows:
        family.add_metric(row, value)
    return family


def _histograms(name: str, help_text: str, label: str, rows: Mapping[str, Mapping[str, Any]]) -> HistogramMetricFamily:
    """A histogram, from snapshots of `agents.histogram.Histogram` by label."""
    family = HistogramMetricFamily(name, help_text, labels=[label], unit="seconds")
    for row, histogram in rows.items():
        family.add_metric([row], list(histogram["buckets"].items()), sum_value=histogram["sum"])
    return family
