"""The metrics that follow the engines: the specification's five, and two about the polling itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from models.audit import RecentOptimization, RecentViolation
from models.evaluation_api import RecentEvaluation

OTHER = "other"
MAX_LABEL_CHARS = 128

# Compliance matters between the trigger (0.8) and the threshold (0.95): fine there, coarse below.
COMPLIANCE_BUCKETS = (
    *(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75),
    *(0.8, 0.82, 0.84, 0.86, 0.88, 0.9, 0.91, 0.92, 0.93, 0.94),
    *(0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 1.0),
)


@dataclass(frozen=True, slots=True)
class PrivacyReading:
    """Epsilon that the data domain of a model has left. `training_session` is the cycle."""

    model_id: str
    training_session: str
    remaining_budget: float


class BoundedLabels:
    """Keeps a label's number of distinct values bounded: the first `max_values` are kept, later ones are `other`.

    Every value is a time series in Prometheus for as long as the process lives, and values come from outside.
    """

    def __init__(self, max_values: int) -> None:
        self._max_values = max_values
        self._known: dict[str, set[str]] = {}

    def __call__(self, label: str, value: str) -> str:
        """The value to use for a label."""
        known = self._known.setdefault(label, set())
        value = value[:MAX_LABEL_CHARS]
        if value in known:
            return value
        if len(known) >= self._max_values:
            return OTHER
        known.add(value)
        return value


class FlywheelMetrics:
    """Counts items that are listed by the engines. Not for use from several threads at once."""

    def __init__(self, registry: CollectorRegistry, max_label_values: int = 100) -> None:
        self._bounded = BoundedLabels(max_label_values)
        self._max_label_values = max_label_values
        self._privacy_series: set[tuple[str, str]] = set()
        self._evaluations = Counter(
            "constitutional_evaluations",
            "Evaluations by the policy engine, by result (allow, deny), type of model and risk level.",
            ["result", "model_type", "risk_level"],
            registry=registry,
        )
        self._compliance = Histogram(
            "constitutional_compliance_score",
            "Confidence that an evaluated text complies with the constitution, 0 to 1.",
            ["model_id", "evaluation_type"],
            buckets=COMPLIANCE_BUCKETS,
            registry=registry,
        )
        self._violations = Counter(
            "constitutional_violations",
            "Violations in the audit log, by code, severity and model.",
            ["violation_type", "severity", "model_id"],
            registry=registry,
        )
        self._optimizations = Counter(
            "model_optimization_cycles",
            "Finished optimization cycles, by what opened them, type of model and success (true, false).",
            ["trigger_type", "model_type", "success"],
            registry=registry,
        )
        self._privacy = Gauge(
            "privacy_budget_remaining",
            "Epsilon that the data domain of a model has left; training_session is the cycle.",
            ["model_id", "training_session"],
            registry=registry,
        )
        self._polls = Counter(
            "flywheel_monitoring_polls",
            "Polls of a source, by outcome (ok, failed).",
            ["source", "outcome"],
            registry=registry,
        )
        self._malformed = Counter(
            "flywheel_monitoring_malformed_items",
            "Items of a source that could not be read and are in no other count.",
            ["source"],
            registry=registry,
        )

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

    def count_poll(self, source: str, *, ok: bool) -> None:
        """One poll of a source."""
        self._polls.labels(source, "ok" if ok else "failed").inc()

    def count_malformed(self, source: str) -> None:
        """One item that could not be read."""
        self._malformed.labels(source).inc()
