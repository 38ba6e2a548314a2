"""The catalogue of metrics: every name, type, label and meaning stands here, and every metric is made from its entry.

`flywheel_` metrics are this system's own, `flywheel_faust_` what Faust's sensors tell; the specification's five have
the names that it gives them. Labels take few values: a fixed set, or `LABELS` says how many at most. The table in the
README is generated from here (`python -m app.telemetry.catalogue`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily

OTHER = "other"
MAX_LABEL_CHARS = 128

LABELS: Mapping[str, str] = {
    "classification": "5: kinds of events (`models.event.Classification`)",
    "client": "3: redis, kafka, sql",
    "domain": "100, then `other`",
    "evaluation_type": "100, then `other`",
    "group": "3: the consumer groups of the roles that read",
    "kind": "a fixed set for each metric",
    "message": "2: oldest, newest",
    "model_id": "100, then `other`",
    "model_type": "100, then `other`",
    "operation": "32 a client, then `other`",
    "outcome": "a fixed set for each metric",
    "partition": "the topics' partitions",
    "pattern": "the table of personal data",
    "reason": "a fixed set (`agents.routing.message.Reason`)",
    "result": "2: allow, deny",
    "risk_level": "100, then `other`",
    "severity": "100, then `other`",
    "source": "5: what the monitoring agent polls",
    "stage": "a fixed set for each metric",
    "state": "12: states of a cycle",
    "success": "2: true, false",
    "topic": "the topics that a role reads",
    "training_session": "the newest 100 cycles",
    "trigger_type": "100, then `other`",
    "violation_type": "100, then `other`",
}
"""How many values each label takes."""

Kind = Literal["counter", "gauge", "histogram"]
AnyMetric = Counter | Gauge | Histogram
Exemplars = Mapping[str, tuple[str, float, float]]
"""By upper bound: trace id, value, Unix time."""

SPECS: dict[str, Spec] = {}
"""All metrics, by the name that PromQL knows (without `_bucket`, `_sum`, `_count`)."""


class NotInCatalogue(KeyError):
    """A metric was asked for that the catalogue does not have."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric. `roles`: the workers that show it."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    buckets: tuple[float, ...] = field(default=(), repr=False)

    def create(self, registry: CollectorRegistry) -> AnyMetric:
        """A metric that is told of events as they happen."""
        if self.kind == "counter":
            return Counter(self.name, self.meaning, self.labels, registry=registry)
        if self.kind == "gauge":
            return Gauge(self.name, self.meaning, self.labels, registry=registry)
        buckets = self.buckets or Histogram.DEFAULT_BUCKETS
        return Histogram(self.name, self.meaning, self.labels, buckets=buckets, registry=registry)

    def family(self) -> Family:
        """A metric whose figures are read when Prometheus scrapes."""
        return Family(self)


class Family:
    """The series of one metric at one moment; `metric` is what a collector yields."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        kinds: dict[Kind, Any] = {
            "counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily,
        }  # fmt: skip
        self.metric: Any = kinds[spec.kind](spec.name, spec.meaning, labels=spec.labels)

    def add(self, value: float, *labels: str) -> Family:
        """One series of a counter or gauge."""
        self.metric.add_metric(self._labels(labels), value)
        return self

    def add_histogram(self, found: Mapping[str, Any], *labels: str) -> Family:
        """One series, from the snapshot of an `agents.histogram.Histogram`."""
        exemplars: Exemplars = found.get("exemplars", {})
        buckets: list[Any] = []
        for bound, count in found["buckets"].items():
            told = exemplars.get(bound)
            if told is None:
                buckets.append((bound, count))
            else:
                trace_id, value, at = told
                buckets.append((bound, count, Exemplar({"trace_id": trace_id}, value, at)))
        self.metric.add_metric(self._labels(labels), buckets, sum_value=found["sum"])
        return self

    def _labels(self, labels: tuple[str, ...]) -> list[str]:
        if len(labels) != len(self.spec.labels):
            raise ValueError(f"{self.spec.name} has the labels {self.spec.labels}, and was given {labels}")
        return [label[:MAX_LABEL_CHARS] for label in labels]


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


def spec(name: str) -> Spec:
    """The entry of a metric; raises `NotInCatalogue`."""
    try:
        return SPECS[name]
    except KeyError:
        raise NotInCatalogue(f"metric {name!r} has no entry in app/telemetry/catalogue.py: add one") from None


def family(name: str) -> Family:
    """The series of a metric, to be filled; raises `NotInCatalogue`."""
    return spec(name).family()


ROUTE, CURATE, TRAIN, MONITOR = "route", "curate", "train", "monitor"
READERS = (ROUTE, CURATE, TRAIN)
ALL = (*READERS, MONITOR)

# Compliance matters between the trigger (0.8) and the threshold (0.95): fine there, coarse below.
COMPLIANCE_BUCKETS = (
    *(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75),
    *(0.8, 0.82, 0.84, 0.86, 0.88, 0.9, 0.91, 0.92, 0.93, 0.94),
    *(0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 1.0),
)


def _add(kind: Kind, roles: Iterable[str], name: str, meaning: str, *labels: str, buckets: Any = ()) -> None:
    if name in SPECS:
        raise ValueError(f"metric {name!r} stands in the catalogue twice")
    unknown = [label for label in labels if label not in LABELS]
    if unknown:
        raise ValueError(f"metric {name!r} has labels without a bound: {unknown}; add them to LABELS")
    SPECS[name] = Spec(name, kind, meaning, tuple(labels), tuple(roles), tuple(buckets))


# --- the specification's five, by the monitoring agent ---------------------------------------------------------------
_add("counter", [MONITOR], "constitutional_evaluations_total",
     "Evaluations by the policy engine.", "result", "model_type", "risk_level")  # fmt: skip
_add("histogram", [MONITOR], "constitutional_compliance_score",
     "Confidence that an evaluated text complies with the constitution, 0 to 1.", "model_id", "evaluation_type",
     buckets=COMPLIANCE_BUCKETS)  # fmt: skip
_add("counter", [MONITOR], "constitutional_violations_total",
     "Violations in the audit log.", "violation_type", "severity", "model_id")  # fmt: skip
_add("counter", [MONITOR], "model_optimization_cycles_total",
     "Finished optimization cycles.", "trigger_type", "model_type", "success")  # fmt: skip
_add("gauge", [MONITOR], "privacy_budget_remaining",
     "Epsilon that the data domain of a model has left, for each cycle of its present cohort that has spent.",
     "model_id", "training_session")  # fmt: skip

# --- monitoring ------------------------------------------------------------------------------------------------------
_add("gauge", [MONITOR], "flywheel_privacy_budget", "Epsilon that a data domain may spend in all (privacy.epsilon).")
_add("counter", [MONITOR], "flywheel_monitoring_polls_total", "Polls of a source.", "source", "outcome")
_add("gauge", [MONITOR], "flywheel_monitoring_source_up", "Whether the last poll of a source went well.", "source")
_add("counter", [MONITOR], "flywheel_monitoring_malformed_items_total",
     "Items of a source that could not be read and are in no other count.", "source")  # fmt: skip
_add("gauge", [MONITOR], "flywheel_group_lag",
     "Records that a consumer group has not committed, as the broker tells; seen also while no worker lives.",
     "group", "topic")  # fmt: skip
_add("gauge", [MONITOR], "flywheel_group_committed_offset",
     "Sum of the offsets that a consumer group has committed.", "group", "topic")  # fmt: skip

# --- reading Kafka ---------------------------------------------------------------------------------------------------
_add("gauge", READERS, "flywheel_consumer_lag", "Offsets between what is committed and the end.", "topic", "partition")
_add("gauge", READERS, "flywheel_consumer_records_open", "Kafka messages fetched and not yet done.")
_add("gauge", READERS, "flywheel_consumer_batches_in_hand", "Batches taken and not yet done.")
_add("histogram", READERS, "flywheel_consumer_delay_seconds",
     "From Kafka's timestamp of a batch's oldest and newest message until all that came of the batch is safe.",
     "message")  # fmt: skip
_add("gauge", READERS, "flywheel_consumer_last_commit_timestamp_seconds",
     "Unix time at which offsets moved on last; before the first commit, of the start.")  # fmt: skip
_add("counter", READERS, "flywheel_faust_events_total", "Events (fetched chunks) that Faust gave its streams.", "topic")
_add("counter", READERS, "flywheel_faust_commits_total", "Commits that Faust carried out.")
_add("histogram", READERS, "flywheel_faust_commit_seconds", "Time of a commit.")
_add("counter", READERS, "flywheel_faust_rebalances_total", "Rebalances that began.")
_add("histogram", READERS, "flywheel_faust_rebalance_seconds", "From the begin of a rebalance to its end.")
_add("counter", READERS, "flywheel_faust_assignments_total", "Partition assignments that Faust worked out.", "outcome")

# --- clients ---------------------------------------------------------------------------------------------------------
_add("histogram", ALL, "flywheel_client_seconds",
     "Time until a client's call was answered: Redis commands, Kafka batches, SQL statements.",
     "client", "operation")  # fmt: skip

_add("gauge", ALL, "flywheel_event_loop_tasks", "Asyncio tasks of the worker that have not ended.")

# --- routing ---------------------------------------------------------------------------------------------------------
_add("counter", [ROUTE], "flywheel_routing_records_in_total", "Records decoded, or counted as one when undecodable.")
_add("counter", [ROUTE], "flywheel_routing_records_out_total",
     "What became of records; adds up to records_in.", "outcome")  # fmt: skip
_add("counter", [ROUTE], "flywheel_routing_messages_total", "Kafka messages routed.")
_add("counter", [ROUTE], "flywheel_routing_batches_total", "Batches routed.")
_add("counter", [ROUTE], "flywheel_routing_redelivered_total", "Records routed again after a redelivery.")
_add("counter", [ROUTE], "flywheel_routing_id_conflict_total",
     "Records whose id was claimed for other content; routed all the same.")  # fmt: skip
_add("counter", [ROUTE], "flywheel_routing_unclaimed_total",
     "Records routed without a check for duplicates, because Redis was away.")  # fmt: skip
_add("counter", [ROUTE], "flywheel_routing_claim_retries_total", "Attempts at claiming that found no Redis.")
_add("counter", [ROUTE], "flywheel_routing_classified_total",
     "Classified records by what became of them.", "outcome", "classification")  # fmt: skip
_add("counter", [ROUTE], "flywheel_routing_dead_letters_total", "Records that can never be routed.", "reason")
_add("counter", [ROUTE], "flywheel_routing_scrubbed_total", "Findings of personal data that were removed.", "pattern")
_add("histogram", [ROUTE], "flywheel_routing_stage_seconds", "Time a batch spent in a stage.", "stage")
_add("gauge", [ROUTE], "flywheel_routing_settings_revision",
     "Revision of the live settings in force; 0 for the configured ones.")  # fmt: skip

# --- curation, store, training ---------------------------------------------------------------------------------------
_add("counter", [CURATE], "flywheel_curation_records_total", "Routed events by what became of them.", "outcome")
_add("counter", [CURATE, TRAIN], "flywheel_pii_downstream_total",
     "Records behind the router in which personal data was found: by curation, or by training's guard.",
     "stage")  # fmt: skip
_add("gauge", [CURATE, TRAIN], "flywheel_store_up", "Whether the store answered this scrape.")
_add("gauge", [CURATE, TRAIN], "flywheel_cycles", "Optimization cycles by state.", "state")
_add("gauge", [CURATE, TRAIN], "flywheel_cycle_age_seconds",
     "Since the oldest open cycle in a state was opened; 0 where there is none.", "state")  # fmt: skip
_add("gauge", [CURATE, TRAIN], "flywheel_cycle_idle_seconds",
     "Since anything of a cycle in a state changed (state or progress), of the one for which that is longest.",
     "state")  # fmt: skip
_add("gauge", [CURATE, TRAIN], "flywheel_cycles_halted", "Whether the stop switch is on.")
_add("gauge", [CURATE, TRAIN], "flywheel_adherence",
     "Estimated share of a model's answers that comply.", "model_id", "domain")  # fmt: skip
_add("gauge", [CURATE, TRAIN], "flywheel_adherence_weight",
     "Evaluations that still count in the estimate of adherence.", "model_id", "domain")  # fmt: skip
_add("gauge", [CURATE, TRAIN], "flywheel_outbox_pending", "Messages that wait for the audit engine or Kafka.")
_add("gauge", [CURATE, TRAIN], "flywheel_outbox_oldest_seconds", "Since the oldest waiting message was written.")
_add("gauge", [CURATE, TRAIN], "flywheel_outbox_refused", "Messages that the receiver will never take.")
_add("gauge", [CURATE, TRAIN], "flywheel_champion_adherence",
     "Adherence of a model's champion since it was deployed.", "model_id")  # fmt: skip
_add("gauge", [CURATE, TRAIN], "flywheel_champion_evaluations",
     "Evaluations that a champion's adherence rests on.", "model_id")  # fmt: skip
_add("counter", [CURATE, TRAIN], "flywheel_champion_rollbacks_total",
     "Champions that were rolled back, by whom.", "model_id", "kind")  # fmt: skip
_add("counter", [CURATE, TRAIN], "flywheel_alerts_total", "Alerts that were raised.", "kind")
_add("gauge", [TRAIN], "flywheel_mirror_up", "Whether MLflow took what the last attempt showed it.")
_add("gauge", [TRAIN], "flywheel_mirror_pending", "Versions and aliases that MLflow has yet to show.")
_add("counter", [TRAIN], "flywheel_mirror_shown_total", "Versions and aliases shown.")
_add("counter", [TRAIN], "flywheel_mirror_failed_total", "What MLflow would not take.")
_add("gauge", [TRAIN], "flywheel_training_step", "Steps done of the job at work; 0 without one.", "stage")
_add("gauge", [TRAIN], "flywheel_training_steps", "Steps of the job at work; 0 without one.", "stage")
_add("gauge", [TRAIN], "flywheel_training_tokens_per_second", "Tokens the job trains on a second; 0 without one.")
_add("gauge", [TRAIN], "flywheel_training_gpu_memory_bytes",
     "The most GPU memory that the job at work has held; 0 without a GPU.")  # fmt: skip

# --- traces ----------------------------------------------------------------------------------------------------------
_add("counter", READERS, "flywheel_trace_spans_total",
     "Ended spans by what became of them; the work itself loses nothing.", "outcome")  # fmt: skip
_add("gauge", READERS, "flywheel_trace_spans_waiting", "Spans not delivered yet.")

BEGIN, END = "<!-- metrics: begin -->", "<!-- metrics: end -->"


def table() -> str:
    """The catalogue as a table in Markdown."""
    lines = ["| metric | type | labels | shown by | meaning |", "|---|---|---|---|---|"]
    for entry in SPECS.values():
        labels = ", ".join(entry.labels)
        roles = "all" if entry.roles == ALL else ", ".join(entry.roles)
        lines.append(f"| `{entry.name}` | {entry.kind} | {labels} | {roles} | {entry.meaning} |")
    lines += ["", "| label | values |", "|---|---|"]
    lines += [f"| `{name}` | {values} |" for name, values in LABELS.items()]
    return "\n".join(lines)


def with_table(document: str) -> str:
    """A document with its table made anew; raises ValueError where it has no place for one."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no lines {BEGIN} and {END} for the table of metrics")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    """Write the table into the telemetry's README."""
    readme = Path(__file__).parent / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
