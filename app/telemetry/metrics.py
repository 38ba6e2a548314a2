"""The catalogue of a worker's own metrics: every name, type, label and meaning stands here.

Figures are read from the workers' counters when Prometheus scrapes, so counting costs the hot path nothing. The
monitoring agent's metrics, which follow the engines, stand in `agents.monitoring.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from app.store.database import DatabaseUnavailable

Snapshot = Callable[[], Mapping[str, Any]]

OUTCOMES = ("routed", "filtered", "duplicate", "sampled_out", "dead_lettered")


class RoutingCollector(Collector):
    """Routing: `flywheel_routing_records_in_total`, and where they went."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now."""
        counts = self.snapshot()
        yield CounterMetricFamily(
            "flywheel_routing_records_in", "Records decoded, or counted as one when undecodable.", value=counts["in"]
        )
        outcomes = CounterMetricFamily(
            "flywheel_routing_records_out", "What became of records; adds up to records_in.", labels=["outcome"]
        )
        for outcome in OUTCOMES:
            outcomes.add_metric([outcome], counts[outcome])
        yield outcomes
        for name, help_text in (
            ("messages", "Kafka messages routed."),
            ("redelivered", "Records routed again after a redelivery."),
            ("id_conflict", "Records whose id was claimed for other content; routed all the same."),
        ):
            yield CounterMetricFamily(f"flywheel_routing_{name}", help_text, value=counts[name])


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


def new_registry() -> CollectorRegistry:
    """One registry a worker, so that several in one process (tests) do not collide."""
    return CollectorRegistry(auto_describe=False)
