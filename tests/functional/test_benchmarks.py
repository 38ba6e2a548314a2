"""The routing benchmark works: it measures a small run of ours, and its check of counts can tell right from wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from benchmarks.cases import Sizes, fill_input
from benchmarks.expected import read_outputs
from benchmarks.messages import Form
from benchmarks.stage import Stage, client_settings
from benchmarks.suite import Options, run_suite
from confluent_kafka import Producer
from systems import running

from app.topics import VIOLATIONS

EVENTS = 2_000


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A stage in the test's own folder."""
    # Small batches, or the whole input would be acknowledged at once and there would be no rate.
    changes = {"pii": {"router": "off"}, "routing": {"batch_messages": 1}, "log": {"level": "WARNING"}}
    with running(tmp_path, "real", None, changes) as system:
        yield Stage(system)


@pytest.mark.kafka
def test_a_small_run_is_measured_and_its_counts_are_exact(stage: Stage, tmp_path: Path) -> None:
    out = tmp_path / "routing.json"
    options = Options(("otlp_json_body",), Sizes(events=EVENTS, repeat=1), only_ours=True, latency=())

    assert run_suite(stage, options, out)

    document: dict[str, Any] = orjson.loads(out.read_bytes())
    (case,) = document["cases"]
    assert case["name"] == "otlp_json_body"
    assert case["counts_exact"]
    assert case["events"] == EVENTS
    assert case["records_per_s"] > 0
    assert 0 < case["cpu_us_per_record"] < 1_000
    assert case["peak_mb"] > 10

    # What the run left is what the model wants; one record more, one less or one elsewhere is noticed.
    expected = fill_input(stage, Form.JSON_BODY, EVENTS).expected
    found = read_outputs(client_settings(stage.bootstrap))
    assert expected.total > EVENTS / 10
    assert expected.differences(found) == []
    _tell_again(stage, event_id := next(iter(expected.ids[VIOLATIONS.name])))
    assert [told.split(":")[0] for told in expected.differences(read_outputs(client_settings(stage.bootstrap)))] == [
        VIOLATIONS.name
    ]
    expected.ids[VIOLATIONS.name].discard(event_id)
    assert "1 unexpected" in expected.differences(found)[0]
    expected.ids[VIOLATIONS.name] |= {event_id, "never sent"}
    assert "1 missing" in expected.differences(found)[0]


def _tell_again(stage: Stage, event_id: str) -> None:
    """Put an event into the violations' topic once more."""
    routed = {"event_id": event_id, "event_classification": "constitutional_violation"}
    producer = Producer(client_settings(stage.bootstrap))
    producer.produce(VIOLATIONS.name, orjson.dumps(routed | {"routing_metadata": {"topic": VIOLATIONS.name}}))
    assert producer.flush(30) == 0
