"""The metrics that follow the engines and the broker; see `app.telemetry.catalogue`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry

from app.telemetry.catalogue import MAX_LABEL_CHARS, BoundedLabels, spec
from models.audit import RecentOptimization, RecentViolation
from models.evaluation_api import RecentEvaluation


@dataclass(frozen=True, slots=True)
class PrivacyReading:
    """Epsilon that the data domain of a model has left. `training_session` is the cycle."""

    model_id: str
    training_session: str
    remaining_budget: float


@dataclass(frozen=True, slots=True)
class GroupPosition:
    """How far a consumer group is in a topic, over all partitions."""

    group: str
    topic: str
    committed: int
    lag: int


_METRICS = (
    *("constitutional_evaluations_total", "constitutional_compliance_score", "constitutional_violations_total"),
    *("model_optimization_cycles_total", "privacy_budget_remaining", "flywheel_privacy_budget"),
    *("flywheel_monitoring_polls_total", "flywheel_monitoring_source_up"),
    *("flywheel_monitoring_malformed_items_total", "flywheel_group_lag", "flywheel_group_committed_offset"),
)


class FlywheelMetrics:
    """Counts items that are listed by the engines. Not for use from several threads at once."""

    def __init__(self, registry: CollectorRegistry, max_label_values: int = 100) -> None:
        self._bounded = BoundedLabels(max_label_values)
        self._max_label_values = max_label_values
        self._privacy_series: set[tuple[str, str]] = set()
        made: dict[str, Any] = {name: spec(name).create(registry) for name in _METRICS}
        self._evaluations = made["constitutional_evaluations_total"]
        self._compliance = made["constitutional_compliance_score"]
        self._violations = made["constitutional_violations_total"]
        self._optimizations = made["model_optimization_cycles_total"]
        self._privacy = made["privacy_budget_remaining"]
        self._budget = made["flywheel_privacy_budget"]
        self._polls = made["flywheel_monitoring_polls_total"]
        self._up = made["flywheel_monitoring_source_up"]
        self._malformed = made["flywheel_monitoring_malformed_items_total"]
        self._lag = made["flywheel_group_lag"]
        self._committed = made["flywheel_group_committed_offset"]

    def show_budget(self, epsilon: float) -> None:
        """What every data domain may spend in all."""
        self._budget.set(epsilon)

    def show_groups(self, positions: Iterable[GroupPosition]) -> None:
        """How far consumer groups are."""
        for item in positions:
            self._lag.labels(item.group, item.topic).set(item.lag)
            self._committed.labels(item.group, item.topic).set(item.committed)

    def count_evaluation(self, item: RecentEvaluation) -> None:
        """One evaluation."""
        self._evaluations.labels(
            "allow" if item.allow else "deny",
            self._bounded("model_type", item.model_type),
            self._bounded("risk_level", item.risk_level),
        ).inc()
        self._compliance.labels(
            self._bounded("model_id", item.model_id),
            self._bounded("evaluation_type", item.type),
        ).observe(item.compliance_score)

    def count_violation(self, item: RecentViolation) -> None:
        """One violation."""
        self._violations.labels(
            self._bounded("violation_type", item.type),
            self._bounded("severity", item.severity),
            self._bounded("model_id", item.model_id),
        ).inc()

    def count_optimization(self, item: RecentOptimization) -> None:
        """One finished cycle."""
        self._optimizations.labels(
            self._bounded("trigger_type", item.trigger_type),
            self._bounded("model_type", item.model_type),
            "true" if item.success else "false",
        ).inc()

    def show_privacy(self, readings: Iterable[PrivacyReading]) -> None:
        """Show what is left now; series that are no longer told of end. Of too many, the last told are shown."""
        values = {
            (item.model_id[:MAX_LABEL_CHARS], item.training_session[:MAX_LABEL_CHARS]): item.remaining_budget
            for item in readings
        }
        # Sessions are new with every cycle, so here the oldest give way instead of the newest.
        shown = dict(list(values.items())[-self._max_label_values :])
        for labels, remaining in shown.items():
            self._privacy.labels(*labels).set(remaining)
        for labels in self._privacy_series - set(shown):
            self._privacy.remove(*labels)
        self._privacy_series = set(shown)

    def begin(self, source: str) -> None:
        """A source will be polled: what is counted of it starts at 0, or Prometheus does not see the first increase."""
        self._malformed.labels(source)
        for outcome in ("ok", "failed"):
            self._polls.labels(source, outcome)

    def count_poll(self, source: str, *, ok: bool) -> None:
        """One poll of a source."""
        self._polls.labels(source, "ok" if ok else "failed").inc()
        self._up.labels(source).set(int(ok))

    def count_malformed(self, source: str) -> None:
        """One item that could not be read."""
        self._malformed.labels(source).inc()
