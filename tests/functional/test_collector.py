"""The built collector with the committed configuration: log records in, Kafka out.

What must not come out is planted in every place that OTLP has for text; what must, is compared exactly.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from collector_parts import (
    KINDS,
    MOMENT,
    SPAN_ID,
    TABLE,
    TRACE_ID,
    Json,
    Rig,
    attributes,
    collector_program,
    everywhere,
    log,
    logs,
    plain,
    plain_attributes,
    planted,
    send,
)

from app.embedded.collector import CONFIG_PATH

ONLY_CHECKSUMS_TELL = {"luhn", "luhn_any_issuer", "iban", "ssn"}
"""Validators without a counterpart in RE2: a collector masks what has the form, the router knows better."""
MASKED_IN_PART = {"780-999-2181-77"}


def validate(environment: dict[str, str], *configs: Path) -> None:
    """Let the collector load configurations, merged."""
    command = [collector_program(), "validate", *(part for path in configs for part in ("--config", path))]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert told.returncode == 0, told.stderr


def test_the_committed_configuration_is_valid(tmp_path: Path) -> None:
    validate({"COLLECTOR_STORAGE": str(tmp_path)}, CONFIG_PATH)


def test_the_elasticsearch_overlay_is_valid_but_for_its_exporter(tmp_path: Path) -> None:
    overlay = yaml.safe_load(CONFIG_PATH.with_name("collector.elasticsearch.yaml").read_text())
    # This build has not got that exporter; all else must load.
    overlay["exporters"] = {"nop": None}
    exporters = overlay["service"]["pipelines"]["logs"]["exporters"]
    exporters[exporters.index("elasticsearch")] = "nop"
    path = tmp_path / "overlay.yaml"
    path.write_text(yaml.safe_dump(overlay))
    validate({"COLLECTOR_STORAGE": str(tmp_path)}, CONFIG_PATH, path)


@pytest.mark.parametrize("kind", KINDS)
def test_no_personal_data_in_logs(rig: Rig, kind: str) -> None:
    found, topic = KINDS[kind], rig.topics["logs"]
    name = f"logs-{kind}"
    shapes = everywhere(found)
    records = [
        log(found.text, shapes | {"test": name}, eventName=f"event {found.text}", severityText=found.text),
        log({**shapes, "event_id": found.text, "big": 2**53 + 1}, {"test": name}),
        log([found.text, shapes], {"test": name}),
        log(json.dumps(shapes | {"event_id": found.text, "big": 2**53 + 1}, ensure_ascii=False), {"test": name}),
    ]
    resource = {"service.name": name, **shapes}
    scope = {"name": f"scope {found.text}", "version": found.text, "attributes": attributes(shapes)}
    send(rig.server, "logs", logs(records, resource, scope))
    mine = lambda: [m for m in topic.messages() if name in json.dumps(m)]  # noqa: E731 - read again at each look
    topic.wait(lambda: sum(json.dumps(m).count(f'"{name}"') for m in mine()) >= 5, "the records come out")

    (message,) = mine()
    (resource_logs,) = (
        r for r in message["resourceLogs"] if plain_attributes(r["resource"]["attributes"])["service.name"] == name
    )
    (scope_logs,) = resource_logs["scopeLogs"]
    out = scope_logs["logRecords"]
    # `event_id` is an identity field: that is the one place where the text is left.
    identities = [json.loads(plain(record["body"])) for record in (out[1], out[3])]
    for identity in identities:
        assert identity.pop("event_id") == found.text
        assert identity.pop("big") == 2**53 + 1
    out[1]["body"] = out[3]["body"] = {"stringValue": json.dumps(identities, ensure_ascii=False)}
    left = json.dumps(resource_logs, ensure_ascii=False)
    for secret in found.secrets:
        assert secret not in left
    assert plain(out[0]["body"]) == found.clean
    assert out[0]["severityText"] == found.clean
    assert out[0]["eventName"] == f"event {found.clean}"
    assert scope_logs["scope"]["name"] == f"scope {found.clean}"
    clean = {"text": found.clean, "nested": json.dumps(everywhere(found._replace(text=found.clean))["nested"])}
    for place in (out[0]["attributes"], resource_logs["resource"]["attributes"], scope_logs["scope"]["attributes"]):
        attrs = plain_attributes(place)
        assert attrs["text"] == clean["text"]
        assert json.loads(attrs["nested"]) == json.loads(clean["nested"])
        assert json.loads(attrs["json"])["note"] == found.clean
    for identity in identities:
        assert identity["text"] == found.clean
        assert identity["nested"] == json.loads(clean["nested"])
        assert json.loads(json.loads(identity["json"])["inner"])["note"] == found.clean


def test_every_example_of_the_table(rig: Rig) -> None:
    sent, expected = [], []
    for pattern in TABLE.patterns:
        for example in pattern.positive:
            found = planted(example, pattern.mask)
            sent.append(log(found.text, {"test": "examples"}))
            expected.append(found.clean)
        for example in pattern.negative:
            if pattern.validator not in ONLY_CHECKSUMS_TELL and example not in MASKED_IN_PART:
                sent.append(log(example, {"test": "examples"}))
                expected.append(example)
    send(rig.server, "logs", logs(sent))
    topic = rig.topics["logs"]
    mine = lambda: [r for r in topic.records() if plain_attributes(r["attributes"]).get("test") == "examples"]  # noqa: E731
    topic.wait(lambda: len(mine()) >= len(sent), "the examples come out")
    assert [plain(record["body"]) for record in mine()] == expected


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (r'{"note":"ada\u0040example.com"}', '{"note":"[EMAIL]"}'),
        (r'{"note":"\u0031\u0030.0.0.1 is down"}', '{"note":"[IPV4] is down"}'),
        (r'{"note":"first\ncarol@example.com","n":1}', r'{"note":"first\n[EMAIL]","n":1}'),
        (r'{"credentials":{"user":"ada","pin":"1234"},"n":1}', '{"credentials":"[SECRET]","n":1}'),
        (r'{"ada@example.com":1}', '{"[EMAIL]":1}'),
        ("10.0.0.1 10.0.0.2,10.0.0.3", "[IPV4] [IPV4],[IPV4]"),
        ("bob@exam\x02\x03ple.com, \x02mark\x03", "[EMAIL], mark"),
    ],
)
def test_texts_that_are_hard_to_clean(rig: Rig, unique: Callable[[str], str], text: str, clean: str) -> None:
    name, topic = unique("hard"), rig.topics["logs"]
    send(rig.server, "logs", logs([log(text, {"test": name})]))
    mine = lambda: [r for r in topic.records() if plain_attributes(r["attributes"]).get("test") == name]  # noqa: E731
    topic.wait(mine, "the record comes out")
    assert plain(mine()[0]["body"]) == clean


SURVIVORS: dict[str, Any] = {
    "event_id": "run-7f3a-4111111111111111",
    "trace_id": TRACE_ID,
    "uuid": "123e4567-e89b-12d3-a456-426614174000",
    "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "constitutional_hash": "cdd01ef066bc6cf2",
    "target_event_id": "ada@example.com",
    "subject_id": "bob@example.com",
    "user": {"name": "x", "id": "carol@example.com", "more": {"id": 1}},
    "timestamp": "2026-11-22T10:11:12.123456789Z",
    "offset": "2026-11-22T10:00:00+01:00",
    "nanoseconds": 1_732_270_800_123_456_789,
    "milliseconds": 1_732_270_800_123,
    "big": 4_111_111_111_111_111,
    "exact": 2**53 + 1,
    "model_version": "1.2.3.4",
    "agent": "Chrome/126.0.0.0 on version 10.20.30.40",
    "amount": "1,234.56 EUR",
    "compliance_score": 0.4111111111111111,
    "prompt_tokens": 128,
    "eos_token": "</s>",
    "routing_metadata": {"topic": "t", "identity": "ada@example.com"},
    "violations": ["harmful_content"],
    "nothing": None,
    "yes": True,
}


@pytest.mark.parametrize("dirty", [False, True], ids=["clean", "beside-personal-data"])
def test_what_must_survive_survives_exactly(rig: Rig, dirty: bool) -> None:
    name = f"survivors-{dirty}"
    event = {key: item for key, item in SURVIVORS.items() if item is not None}
    if dirty:
        event["prompt"] = "write to dora@example.com"
    ids = {"traceId": TRACE_ID, "spanId": SPAN_ID}
    bodies: list[Any] = [json.dumps(event | {"nothing": None}), event]
    records = [log(body, {"test": name}, **ids) for body in bodies] + [log("text", event | {"test": name}, **ids)]
    send(rig.server, "logs", logs(records))
    topic = rig.topics["logs"]
    mine = lambda: [r for r in topic.records() if plain_attributes(r["attributes"]).get("test") == name]  # noqa: E731
    topic.wait(lambda: len(mine()) == 3, "the records come out")
    expected = event | ({"prompt": "write to [EMAIL]"} if dirty else {})
    as_text, as_map, as_attributes = mine()
    assert json.loads(plain(as_text["body"])) == expected | {"nothing": None}
    body = plain(as_map["body"])
    assert (json.loads(body) if dirty else body) == expected
    attrs = plain_attributes(as_attributes["attributes"])
    assert {key: attrs[key] for key in expected} == expected
    assert {type(attrs[key]) for key in ("big", "exact", "nanoseconds")} == {int}
    for record in mine():
        assert (record["timeUnixNano"], record["traceId"], record["spanId"]) == (
            str(MOMENT),
            _base64(TRACE_ID),
            _base64(SPAN_ID),
        )


def _base64(digits: str) -> str:
    return base64.b64encode(bytes.fromhex(digits)).decode()


@pytest.mark.parametrize(
    ("event", "tags"),
    [
        ({"constitutional_hash": "cdd01ef066bc6cf2", "compliance_score": 0.95}, (True, True)),
        ({"constitutional_hash": "cdd01ef066bc6cf2", "compliance_score": 0.9499}, (True, False)),
        ({"constitutional_hash": "0000000000000000", "compliance_score": 1}, (False, True)),
        ({"compliance_score": "high"}, (False, None)),
        ({}, (False, None)),
    ],
)
@pytest.mark.parametrize("form", ["text", "map", "attributes"])
def test_each_record_is_tagged_with_hash_and_compliance(
    rig: Rig, event: Json, tags: tuple[bool, bool | None], form: str, unique: Callable[[str], str]
) -> None:
    name = unique("tags")
    body = {"text": json.dumps(event), "map": event, "attributes": "call"}[form]
    send(rig.server, "logs", logs([log(body, (event if form == "attributes" else {}) | {"test": name})]))
    topic = rig.topics["logs"]
    mine = lambda: [  # noqa: E731
        attrs for r in topic.records() if (attrs := plain_attributes(r["attributes"])).get("test") == name
    ]
    topic.wait(mine, "the record comes out")
    (attrs,) = mine()
    assert (attrs["constitutional.hash_match"], attrs.get("constitutional.compliant")) == tags
