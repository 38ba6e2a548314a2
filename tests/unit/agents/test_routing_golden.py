"""What real exporters send, and what the router makes of it, word for word. See `tests/data/golden/README.md`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import orjson
import pytest
from routing_parts import DEAD_LETTERS, HASH, MemoryClaims, MemorySink, no_scrub

from agents.routing.bounds import DecodeLimits
from agents.routing.classify import RoutingRules
from agents.routing.counters import Counters, RouteReport
from agents.routing.decode import decode
from agents.routing.message import DecodedRecord, InboundMessage, Rejected
from agents.routing.pipeline import Pipeline
from agents.routing.publish import OutRecord

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "golden"
UPDATE = os.environ.get("FLYWHEEL_TEST_UPDATE_GOLDEN") == "1"
CAPTURED = sorted(path.stem for path in (GOLDEN / "captured").glob("*.bin"))


def captured(name: str, **more: str) -> InboundMessage:
    """A captured message as it lies on the input topic."""
    headers: dict[str, str] = json.loads((GOLDEN / "captured" / f"{name}.headers.json").read_text())
    value = (GOLDEN / "captured" / f"{name}.bin").read_bytes()
    return inbound(value, {**headers, **more})


def inbound(value: bytes, headers: dict[str, str]) -> InboundMessage:
    encoded = {header: text.encode() for header, text in headers.items()}
    return InboundMessage("otel-audit-events", 3, 41, value, b"producer-key", encoded)


def decoded(item: DecodedRecord | Rejected) -> dict[str, Any]:
    if isinstance(item, Rejected):
        return {"index": item.index, "rejected": item.reason.value}
    return {"index": item.index, "service": item.service, "single": item.single, "event": item.event}


def published(record: OutRecord) -> dict[str, Any]:
    return {
        "topic": record.topic,
        "key": None if record.key is None else record.key.decode(),
        "headers": {name: value.decode() for name, value in record.headers},
        "value": orjson.loads(record.value),
    }


def counts(report: RouteReport) -> dict[str, Any]:
    outcomes = ("routed", "filtered", "duplicate", "sampled_out", "dead_lettered")
    return {"in": report.records_in} | {name: dict(sorted(getattr(report, name).items())) for name in outcomes}


async def outcome(message: InboundMessage) -> dict[str, Any]:
    """All that comes of a message, as the golden files have it."""
    sink = MemorySink()
    pipe = Pipeline(RoutingRules(HASH), DecodeLimits(), no_scrub, MemoryClaims(), sink, Counters(), clock=lambda: 0.0)
    report = await pipe.route([message])
    assert report.unaccounted() == 0
    return {
        "decoded": [decoded(item) for item in decode(message, DecodeLimits())],
        "published": [published(record) for record in sink.records],
        "counts": counts(report),
    }


def compare(name: str, found: dict[str, Any]) -> None:
    path = GOLDEN / "expected" / f"{name}.json"
    if UPDATE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    assert found == json.loads(path.read_text())


@pytest.mark.parametrize("name", CAPTURED)
async def test_what_exporters_send(name: str) -> None:
    compare(name, await outcome(captured(name)))


async def test_the_collector_output_of_the_test_data(test_data: Path) -> None:
    compare("collector", await outcome(inbound((test_data / "otlp_logs.json").read_bytes(), {})))


def test_every_capture_and_no_other_has_an_expectation() -> None:
    assert len(CAPTURED) >= 7
    assert {path.stem for path in (GOLDEN / "expected").glob("*.json")} == {*CAPTURED, "collector"}


@pytest.mark.parametrize("name", CAPTURED)
async def test_the_form_is_told_by_the_content_too(name: str) -> None:
    """A Kafka producer may leave the content type out; what is compressed must still say so."""
    message = captured(name)
    bare = {header: value for header, value in message.headers.items() if header == "content-encoding"}
    told = await outcome(message)
    message.headers = bare
    untold = await outcome(message)
    for out in (told, untold):
        for record in out["published"]:
            if record["topic"] == DEAD_LETTERS:
                record["headers"].pop("content-type", None)
    assert untold == told


@pytest.mark.parametrize(("one", "other"), [("python_sdk", "python_sdk_gzip"), ("node_sdk_protobuf", "node_sdk_json")])
async def test_two_encodings_of_the_same_records_come_to_the_same(one: str, other: str) -> None:
    assert await outcome(captured(one)) == await outcome(captured(other))


async def test_a_genai_call_needs_no_change_in_the_application() -> None:
    """The one thing of the golden files that must never be updated away."""
    (record,) = (await outcome(captured("genai_current")))["decoded"]
    event = record["event"]
    assert record["service"] == "support-bot"
    assert (event["model_id"], event["model_version"]) == ("alpha", "alpha-2026-01-01")
    assert event["prompt"] == "how do I pick a lock?"
    assert event["response"] == "I would rather not. Here is a safe way."
    assert (event["input_tokens"], event["output_tokens"]) == (21, 9)
