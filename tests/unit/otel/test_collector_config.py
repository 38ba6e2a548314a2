"""The collector's configuration as a file: current, and of the shape that the system relies on."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import re2
import yaml

from app.settings import Settings
from app.topics import AUDIT_EVENTS
from otel import collector_config
from otel.collector_patterns import key_rules, numeric_guard, type_rules
from otel.table import load_table

OTEL = collector_config.CONFIG_PATH.parent
TABLE = load_table()
RULES = {rule.name: rule for rule in type_rules(TABLE)}
DEFAULT = re.compile(r"\$\{env:[A-Z_]+:-([^}]*)\}")


def loaded(name: str) -> dict[str, Any]:
    """A configuration with the defaults of its variables in their places."""
    text = (OTEL / name).read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(DEFAULT.sub(r"\1", text))
    return found


CONFIG = loaded("collector.yaml")


def test_the_committed_file_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert collector_config.main(["--check"]) == 0, capsys.readouterr().err


def test_a_file_that_is_not_current_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "collector.yaml"
    path.write_text("receivers: {}\n")
    monkeypatch.setattr(collector_config, "CONFIG_PATH", path)
    assert collector_config.main(["--check"]) == 1
    assert "make otel" in capsys.readouterr().err
    assert collector_config.main([]) == 0
    assert path.read_text() == (OTEL / "collector.yaml").read_text()


def test_every_pipeline_limits_memory_first_and_scrubs() -> None:
    pipelines = CONFIG["service"]["pipelines"]
    assert {name.partition("/")[0] for name in pipelines} == {"logs", "traces", "metrics"}
    for name, pipeline in pipelines.items():
        assert pipeline["processors"][0] == "memory_limiter", name
        assert "transform/pii" in pipeline["processors"], name
    # A batch processor acknowledges what a crash would lose.
    assert not [part for part in CONFIG["processors"] if part.startswith("batch")]


def test_kafka_gets_whole_batches_and_loses_none() -> None:
    kafka = CONFIG["exporters"]["kafka"]
    assert kafka["logs"] == {"topic": AUDIT_EVENTS.name, "encoding": "otlp_proto"}
    assert not [name for name in kafka if name.startswith("partition_logs")]
    assert (kafka["producer"]["compression"], kafka["producer"]["required_acks"]) == ("gzip", -1)
    assert kafka["retry_on_failure"]["max_elapsed_time"] == 0, "retries without end"
    queue = kafka["sending_queue"]
    assert queue["storage"] in CONFIG["service"]["extensions"]
    batch = queue["batch"]
    assert (batch["min_size"], batch["max_size"], batch["flush_timeout"]) == (1000, 1500, "200ms")


def test_the_specifications_ports_and_values_are_the_defaults() -> None:
    protocols = CONFIG["receivers"]["otlp"]["protocols"]
    endpoints = [protocols["grpc"]["endpoint"], protocols["http"]["endpoint"]]
    endpoints.append(CONFIG["exporters"]["prometheus"]["endpoint"])
    assert [endpoint.rpartition(":")[2] for endpoint in endpoints] == ["4317", "4318", "8889"]
    constitution = Settings().constitution
    statements = "\n".join(CONFIG["processors"]["transform/constitution"]["log_statements"][0]["statements"])
    assert f'"{constitution.hash}"' in statements
    assert f">= {constitution.compliance_threshold}" in statements


def test_the_builder_has_every_part_that_the_configuration_names() -> None:
    manifest = yaml.safe_load((OTEL / "builder.yaml").read_text())
    for section in ("receivers", "processors", "exporters", "extensions"):
        modules = " ".join(part["gomod"] for part in manifest[section])
        for name in CONFIG[section]:
            assert name.partition("/")[0].replace("_", "") in modules, f"{section}: {name}"


def test_the_elasticsearch_overlay_adds_to_the_pipeline_and_takes_nothing_away() -> None:
    overlay = loaded("collector.elasticsearch.yaml")
    assert overlay["exporters"]["elasticsearch"]["endpoint"] == "http://elasticsearch:9200"
    assert overlay["exporters"]["elasticsearch"]["logs_index"] == "acgs-constitutional-audit"
    assert "mapping" not in overlay["exporters"]["elasticsearch"], "the scope attribute says the mode"
    (group,) = overlay["processors"]["transform/ecs"]["log_statements"]
    assert group == {"context": "scope", "statements": ['set(scope.attributes["elastic.mapping.mode"], "ecs")']}
    (name,) = overlay["service"]["pipelines"]
    ours, base = overlay["service"]["pipelines"][name], CONFIG["service"]["pipelines"][name]
    assert ours["receivers"] == base["receivers"]
    assert ours["processors"] == [*base["processors"], "transform/ecs"]
    assert ours["exporters"] == [*base["exporters"], "elasticsearch"]
    defined = CONFIG["exporters"].keys() | overlay["exporters"].keys()
    assert set(ours["exporters"]) <= defined
    assert overlay["exporters"]["elasticsearch"]["sending_queue"]["storage"] in CONFIG["extensions"]


def texts_of(kind: str) -> list[str]:
    """The positive examples of a type, plain, and as JSON text."""
    examples = itertools.chain.from_iterable(p.positive for p in TABLE.patterns if p.name == kind)
    return [re.sub("[«»]", "", example) for example in examples]


@pytest.mark.parametrize("kind", RULES)
def test_the_guard_asks_for_a_closer_look_at_every_example(kind: str) -> None:
    rule = RULES[kind]
    for text in texts_of(kind):
        joined = re.sub(r"\\+(?:[nrtbf]|u00[0-9A-Fa-f]{2})", " ", f" {text}")
        lower = joined.lower()
        assert (
            any(part in lower for part in rule.contains)
            or any(re2.search(word, lower) for word in rule.words)
            or (rule.numeric and re2.search(numeric_guard([rule]), joined))
        ), text


def test_the_guards_numeric_expression_is_short_enough_for_gos_faster_matcher() -> None:
    # Over 500 instructions Go takes another matcher, and scrubbing a clean record cost six times as much.
    assert re2.compile(numeric_guard(RULES.values())).programsize < 450


@pytest.mark.parametrize("kind", RULES)
def test_words_of_the_guard_begin_with_a_literal(kind: str) -> None:
    # Go's regexp looks for a literal at the start without its matcher: a hundred times cheaper.
    for word in RULES[kind].words:
        assert re.match(r"[a-z]{2}", word), word


def test_names_of_secrets() -> None:
    keys = key_rules(TABLE)

    def is_secret(name: str) -> bool:
        return re2.search(keys.secret, name) is not None and re2.search(keys.not_secret, name) is None

    assert [name for name in TABLE.secret_keys.positive if not is_secret(name)] == []
    assert [name for name in TABLE.secret_keys.negative if is_secret(name)] == []


def test_identity_and_subject_fields_are_left() -> None:
    keys = key_rules(TABLE)
    for name in (*TABLE.identity_fields, *TABLE.subject_fields, "eventId", "trace.id"):
        assert re2.search(keys.untouched, name), name
    for name in ("event_id_note", "my_event_id", "user", "session_id"):
        assert not re2.search(keys.untouched, name), name
