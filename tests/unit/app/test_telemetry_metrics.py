"""The router's metrics: what is counted is shown, adds up at any moment, and has few labels."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse

from agents.flow import Flow
from agents.routing.counters import STAGES, Counters, RouteReport
from agents.routing.message import Reason
from app.telemetry.metrics import ConsumerCollector, MirrorCollector, RoutingCollector, TraceCollector, new_registry
from app.telemetry.tracing import SpanCounts
from models.event import Classification

PARSE_OPENMETRICS: Callable[[str], Iterable[Metric]] = openmetrics_parser.text_string_to_metric_families
Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def report(**changes: Any) -> RouteReport:
    """A batch of ten records."""
    fields: dict[str, Any] = {
        "messages": 2,
        "records_in": 10,
        "routed": Counter(constitutional_violation=2, audit_trail=1),
        "filtered": Counter(audit_trail=4),
        "duplicate": Counter(audit_trail=1),
        "sampled_out": Counter(policy_evaluation=1),
        "dead_lettered": Counter(invalid_json=1),
        "scrubbed": Counter(email=3),
        "redelivered": 1,
        "id_conflict": 1,
        "unclaimed": 3,
        "claim_retries": 2,
        "seconds": {"decide": 0.002, "claim": 0.0001, "publish": 99.0},
    }
    return RouteReport(**fields | changes)


def registry(counters: Counters, flow: Flow | None = None, spans: SpanCounts | None = None) -> CollectorRegistry:
    registry = new_registry()
    registry.register(RoutingCollector(lambda: counters.snapshot() | {"live": {"revision": 4}}))
    registry.register(ConsumerCollector((flow or Flow()).snapshot))
    registry.register(TraceCollector((spans or SpanCounts()).snapshot))
    return registry


def values(families: Iterable[Metric]) -> Values:
    found: Values = {}
    for family in families:
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def of(found: Values, name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


def total(found: Values, name: str) -> float:
    return sum(value for (metric, _), value in found.items() if metric == name)


def test_all_that_is_counted_is_shown_and_adds_up() -> None:
    counters = Counters()
    for _ in range(3):
        counters.apply(report())
    found = values(parse(generate_latest(registry(counters)).decode()))
    assert of(found, "flywheel_routing_records_in_total") == 30
    assert total(found, "flywheel_routing_records_out_total") == 30
    assert of(found, "flywheel_routing_records_out_total", outcome="filtered") == 12
    dead = of(found, "flywheel_routing_records_out_total", outcome="dead_lettered")
    assert total(found, "flywheel_routing_dead_letters_total") == dead == 3
    assert of(found, "flywheel_routing_dead_letters_total", reason="invalid_json") == 3
    assert total(found, "flywheel_routing_classified_total") + dead == 30
    kinds = {"outcome": "routed", "classification": "constitutional_violation"}
    assert of(found, "flywheel_routing_classified_total", **kinds) == 6
    assert of(found, "flywheel_routing_scrubbed_total", pattern="email") == 9
    plain = {
        name: of(found, f"flywheel_routing_{name}_total")
        for name in ("messages", "batches", "redelivered", "id_conflict", "unclaimed", "claim_retries")
    }
    assert plain == {
        "messages": 6, "batches": 3, "redelivered": 3, "id_conflict": 3, "unclaimed": 9, "claim_retries": 6,
    }  # fmt: skip
    assert of(found, "flywheel_routing_settings_revision") == 4


def test_latencies_are_a_histogram_of_batches_by_stage() -> None:
    counters = Counters()
    for _ in range(3):
        counters.apply(report())
    counters.apply(report(seconds={"decide": 0.0025, "claim": 0.0, "publish": 0.4}))
    found = values(parse(generate_latest(registry(counters)).decode()))
    name = "flywheel_routing_stage_seconds"
    for stage in STAGES:
        assert of(found, f"{name}_count", stage=stage) == of(found, f"{name}_bucket", stage=stage, le="+Inf") == 4
    assert of(found, f"{name}_bucket", stage="decide", le="0.001") == 0
    assert of(found, f"{name}_bucket", stage="decide", le="0.0025") == 4
    assert of(found, f"{name}_bucket", stage="publish", le="60.0") == 1
    assert of(found, f"{name}_sum", stage="publish") == pytest.approx(297.4)


def test_labels_that_are_known_are_there_from_the_start_and_no_others() -> None:
    found = values(parse(generate_latest(registry(Counters())).decode()))
    reasons = {dict(labels)["reason"] for name, labels in found if name == "flywheel_routing_dead_letters_total"}
    assert reasons == {reason.value for reason in Reason}
    classified = [dict(labels) for name, labels in found if name == "flywheel_routing_classified_total"]
    assert {row["classification"] for row in classified} == {kind.value for kind in Classification}
    assert len(classified) == 4 * len(Classification)
    assert {value for (name, _), value in found.items() if name.startswith("flywheel_routing")} == {0.0, 4.0}


def test_the_registrys_mirror() -> None:
    found = new_registry()
    found.register(MirrorCollector(lambda: {"up": 1, "pending": 2, "shown": 3, "failed": 4}))
    shown = values(parse(generate_latest(found).decode()))
    names = ("up", "pending", "shown_total", "failed_total")
    assert [of(shown, f"flywheel_mirror_{name}") for name in names] == [1, 2, 3, 4]


def test_consumer_and_traces() -> None:
    class Source:
        def lag(self) -> dict[Any, int]:
            return {}

        def open_records(self) -> int:
            return 12

    flow, spans = Flow(), SpanCounts()
    flow.begin(Source(), deque([1, 2]))
    spans.ended, spans.exported, spans.failed, spans.dropped = 10, 4, 3, 2
    found = values(parse(generate_latest(registry(Counters(), flow, spans)).decode()))
    assert of(found, "flywheel_consumer_records_open") == 12
    assert of(found, "flywheel_consumer_batches_in_hand") == 2
    assert total(found, "flywheel_consumer_lag") == 0
    outcomes = {
        name: of(found, "flywheel_trace_spans_total", outcome=name) for name in ("exported", "failed", "dropped")
    }
    assert outcomes == {"exported": 4, "failed": 3, "dropped": 2}
    assert of(found, "flywheel_trace_spans_waiting") == 1


def test_openmetrics_text_is_valid_and_says_the_same() -> None:
    counters = Counters()
    counters.apply(report())
    shown = registry(counters)
    found = values(PARSE_OPENMETRICS(openmetrics.generate_latest(shown).decode()))
    assert found == values(parse(generate_latest(shown).decode()))


def test_every_metric_is_named_and_described_once() -> None:
    families = list(registry(Counters()).collect())
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    for family in families:
        assert family.name.startswith("flywheel_")
        assert family.documentation.endswith(".")
        if family.type == "histogram":
            assert family.name.endswith("_seconds"), family.name


def test_a_scrape_never_sees_half_a_batch() -> None:
    """The web server reads in a thread of its own while the loop counts."""
    counters, stop = Counters(), threading.Event()
    batch = report(
        records_in=300, **{name: Counter({f"{name}{kind}": 1 for kind in range(60)}) for name in OUTCOMES}, seconds={}
    )
    assert batch.unaccounted() == 0

    def count() -> None:
        while not stop.is_set():
            counters.apply(batch)

    counting = threading.Thread(target=count)
    counting.start()
    try:
        for _ in range(2000):
            counts = counters.snapshot()
            assert counts["in"] == sum(counts[name] for name in OUTCOMES) == counts["batches"] * 300
    finally:
        stop.set()
        counting.join()


OUTCOMES = ("routed", "filtered", "duplicate", "sampled_out", "dead_lettered")
