"""The catalogue of metrics: all of them stand in it, the README shows it, labels are bounded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from services import REPOSITORY

from agents.histogram import Histogram
from app.telemetry import catalogue
from app.telemetry.catalogue import LABELS, SPECS, BoundedLabels, NotInCatalogue, family, spec

MAKERS = re.compile(
    r"\b(?:prometheus_client[\w.]* import [^\n]*\b(?:Counter|Gauge|Histogram|Summary|Info|Enum)\b|\w+MetricFamily\b)"
)


def test_the_readmes_table_is_what_the_catalogue_says() -> None:
    readme = Path(catalogue.__file__).parent / "README.md"
    document = readme.read_text()
    assert catalogue.with_table(document) == document, "run: python -m app.telemetry.catalogue"


def test_no_metric_of_a_worker_is_made_anywhere_else() -> None:
    makers = {
        str(path.relative_to(REPOSITORY))
        for folder in ("app", "agents", "otel", "models")
        for path in (REPOSITORY / folder).rglob("*.py")
        if MAKERS.search(path.read_text())
    }
    assert makers == {"app/telemetry/catalogue.py"}


def test_names_follow_prometheus_conventions() -> None:
    for name, entry in SPECS.items():
        assert (entry.kind == "counter") == name.endswith("_total"), name
        assert entry.meaning.endswith("."), name
        assert entry.roles, name
        assert set(entry.labels) <= LABELS.keys(), name
    assert {label for entry in SPECS.values() for label in entry.labels} == LABELS.keys()


def test_an_unknown_metric_and_wrong_labels_are_refused() -> None:
    with pytest.raises(NotInCatalogue, match="flywheel_invented"):
        spec("flywheel_invented")
    with pytest.raises(ValueError, match="flywheel_cycles has the labels"):
        family("flywheel_cycles").add(1, "training", "too many")
    with pytest.raises(ValueError, match="no lines"):
        catalogue.with_table("nothing here")


def test_a_label_takes_no_more_values_than_it_may() -> None:
    bounded = BoundedLabels(2)
    assert [bounded("model_id", name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", "other", "a", "other"]
    assert bounded("domain", "c" * 500) == "c" * catalogue.MAX_LABEL_CHARS


def test_every_entry_makes_its_metric() -> None:
    registry = CollectorRegistry()
    for entry in SPECS.values():
        entry.create(registry)
    made = {metric.name: metric.type for metric in registry.collect()}
    assert made == {name.removesuffix("_total"): entry.kind for name, entry in SPECS.items()}


def test_the_latest_traced_observation_of_a_bucket_is_its_exemplar() -> None:
    histogram = Histogram((0.1, 1.0))
    histogram.observe(0.05)
    assert "exemplars" not in histogram.snapshot()
    for value, trace in ((0.5, "a" * 32), (0.6, "b" * 32), (0.7, None)):
        histogram.observe(value, trace)
    metric = family("flywheel_routing_stage_seconds").add_histogram(histogram.snapshot(), "decide").metric
    buckets = {sample.labels["le"]: sample for sample in metric.samples if sample.name.endswith("_bucket")}
    assert buckets["0.1"].exemplar is None
    assert buckets["1.0"].value == 4
    assert buckets["1.0"].exemplar.labels == {"trace_id": "b" * 32}
    assert buckets["1.0"].exemplar.value == 0.6


def test_rules_and_dashboards_ask_for_metrics_that_there_are_and_every_alert_has_a_runbook() -> None:
    rules = yaml.safe_load((REPOSITORY / "docker/prometheus/rules.yaml").read_text())
    entries = [rule for group in rules["groups"] for rule in group["rules"]]
    boards = [json.loads(path.read_text()) for path in (REPOSITORY / "docker/grafana/dashboards").glob("*.json")]
    queries = [rule["expr"] for rule in entries]
    queries += [target["expr"] for board in boards for panel in board["panels"] for target in panel["targets"]]
    recorded = {rule["record"] for rule in entries if "record" in rule}
    for query in queries:
        for name in re.findall(r"\b(?:flywheel|constitutional|privacy_budget|model_optimization)_\w+", query):
            base = re.sub(r"_(?:bucket|sum|count)$", "", name)
            assert base in SPECS or base.replace("_created", "_total") in SPECS, name
        assert set(re.findall(r"\bflywheel:[\w:]+", query)) <= recorded
    runbooks = (REPOSITORY / "docker/README.md").read_text()
    anchors = {heading.lower() for heading in re.findall(r"^### (\w+)$", runbooks, re.MULTILINE)}
    for alert in (rule for rule in entries if "alert" in rule):
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert {"summary", "description", "runbook_url"} == alert["annotations"].keys()
        page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert page == "docker/README.md"
        assert anchor in anchors
        assert anchor == alert["alert"].lower()
