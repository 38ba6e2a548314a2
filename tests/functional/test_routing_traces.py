"""Traces and metrics of a router worker: from an application's span through Kafka to the routed record and back."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_receiver import Receiver, attributes, context, ids
from prometheus_client.parser import text_string_to_metric_families
from systems import read_topics, running, stats, wait_until
from traced_application import Application
from traced_application import linked as all_linked

from app.embedded.system import System
from app.roles import Role

INPUT, VIOLATIONS = "otel-audit-events", "constitutional-violations"
OUTCOMES = ("routed", "filtered", "duplicate", "sampled_out", "dead_lettered")
PARTITIONS = 4

Event = dict[str, Any]
Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(params=["mock", pytest.param("real", marks=pytest.mark.kafka)])
def traced(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[System, Receiver, Application]]:
    """A router that follows half of the traces, a receiver of its spans, and an application that sends it events."""
    with Receiver() as receiver, running(tmp_path, request.param, None, {}) as system:
        system.change({"telemetry": {"otlp_endpoint": receiver.url, "trace_sample_rate": 0.5}})
        system.start_workers([Role.ROUTE])
        application = Application(f"{system.url(Role.ROUTE)}/v1/logs")
        yield system, receiver, application
        application.close()


def violation(name: str) -> Event:
    return {"event_id": name, "constitutional_hash": "cdd01ef066bc6cf2", "violations": ["harmful_content"]}


def send(system: System, events: list[Event], traceparent: bytes | None = None) -> None:
    """Write single events to the router's topic."""
    headers = None if traceparent is None else [("traceparent", traceparent)]

    async def produce() -> None:
        async with AIOKafkaProducer(bootstrap_servers=system.settings.kafka.bootstrap_servers) as producer:
            for event in events:
                await producer.send_and_wait(INPUT, json.dumps(event).encode(), headers=headers)

    asyncio.run(produce())


def routed(system: System) -> int:
    count: int = stats(system, Role.ROUTE, "routing").get("routed", 0)
    return count


def carried(system: System) -> dict[str, list[bytes]]:
    """The `traceparent`s of the routed violations, by event."""
    found: dict[str, list[bytes]] = {}
    for record in read_topics(system.settings.kafka.bootstrap_servers, [VIOLATIONS])[VIOLATIONS]:
        values = [value for name, value in record.headers if name == "traceparent"]
        found[json.loads(record.value or b"")["event_id"]] = values
    return found


def metrics(system: System) -> Values:
    text = httpx.get(f"{system.url(Role.ROUTE)}/metrics", timeout=30.0, trust_env=False).raise_for_status().text
    families = text_string_to_metric_families(text)
    return {
        (line.name, tuple(sorted(line.labels.items()))): line.value for family in families for line in family.samples
    }


def of(found: Values, name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


def by_label(found: Values, name: str, label: str) -> Counter[str]:
    """Values of a metric, added up by one of its labels."""
    counts: Counter[str] = Counter()
    for (metric, labels), value in found.items():
        if metric == name:
            counts[dict(labels)[label]] += int(value)
    return counts


@pytest.mark.timeout(600)
def test_a_trace_is_followed_from_the_application_to_the_routed_record(
    traced: tuple[System, Receiver, Application],
) -> None:
    system, receiver, application = traced
    told = {name: application.call(violation(name), followed=name != "left") for name in ("one", "left", "two")}
    application.call({"event_id": "routine", "status": "success", "compliance_score": 0.99}, followed=True)
    application.flush()
    producer = b"00-0af7651916cd43dd84ffffffffffffff-b7ad6b7169203331-01"
    send(system, [violation("kafka")], producer)
    wait_until(lambda: routed(system) == 4, "all violations are routed")
    wait_until(lambda: len(receiver.spans) == 2, "the spans of both messages are exported")

    # The application's trace id leads to the router's span, and that to the routed record.
    span = linked(receiver, told["one"])
    assert [context(link) for link in span.links] == [told["one"], told["two"]]
    of_kafka = linked(receiver, b"0af7651916cd43dd84ffffffffffffff-b7ad6b7169203331")
    headers = carried(system)
    assert {name: [ids(value) for value in values] for name, values in headers.items()} == {
        "one": [context(span)],
        "two": [context(span)],
        "left": [told["left"]],
        "kafka": [context(of_kafka)],
    }
    assert span.trace_id != of_kafka.trace_id
    assert attributes(span)["messaging.destination.name"] == INPUT
    counts = [attributes(span)[f"flywheel.message.{name}"] for name in ("records", "routed", "dropped")]
    assert counts == [4, 3, 1]
    assert receiver.resources[0]["service.name"] == f"{system.settings.kafka.group_prefix}-route"
    assert stats(system, Role.ROUTE, "traces") == {
        "ended": 2, "exported": 2, "failed": 0, "dropped": 0, "waiting": 0,
    }  # fmt: skip

    _check_that_an_absent_receiver_disturbs_nothing(system, receiver, application)


def linked(receiver: Receiver, of: bytes) -> Span:
    """The one span that links to a context."""
    (span,) = all_linked(receiver.spans, of)
    return span


def _check_that_an_absent_receiver_disturbs_nothing(
    system: System, receiver: Receiver, application: Application
) -> None:
    receiver.stop()
    told = {f"away {number}": application.call(violation(f"away {number}"), followed=True) for number in range(50)}
    application.flush()
    wait_until(lambda: routed(system) == 54, "all is routed without a receiver", 20)
    headers = carried(system)
    assert all(len(headers[name]) == 1 for name in told)
    wait_until(lambda: stats(system, Role.ROUTE, "traces").get("failed") == 1, "the span is given up", 30)
    log = system.processes["worker-route"].log()
    assert log.count("takes no spans") == 1
    with Receiver(receiver.port) as back:
        told["back"] = application.call(violation("back"), followed=True)
        application.flush()
        wait_until(lambda: back.spans, "the receiver gets spans again")
        assert context(linked(back, told["back"]).links[0]) == told["back"]
        # A stop delivers what the exporter's interval has not.
        last = application.call(violation("last"), followed=True)
        application.flush()
        wait_until(lambda: routed(system) == 56, "the last is routed")
        system.processes["worker-route"].stop()
        wait_until(lambda: len(back.spans) == 2, "the last span is delivered", 5)
        assert linked(back, last)


@pytest.mark.timeout(600)
def test_the_accounting_and_the_lag_over_metrics(traced: tuple[System, Receiver, Application]) -> None:
    system, _, _ = traced
    send(system, [violation(f"v{number}") for number in range(30)] + [violation("v0")])
    send(system, [{"event_id": "r", "status": "success", "compliance_score": 0.99}, {"violations": 3}])
    wait_until(lambda: stats(system, Role.ROUTE, "routing").get("in") == 33, "all is routed")
    wait_until(lambda: behind(system) == {str(number): 0 for number in range(PARTITIONS)}, "all is committed")
    _check_that_all_adds_up(system, messages=33)
    found = metrics(system)
    assert by_label(found, "flywheel_routing_records_out_total", "outcome") == {
        "routed": 30, "filtered": 1, "duplicate": 1, "sampled_out": 0, "dead_lettered": 1,
    }  # fmt: skip
    assert of(found, "flywheel_routing_dead_letters_total", reason="invalid_violations") == 1
    assert stats(system, Role.ROUTE, "routing")["seconds"].keys() == {"decide", "claim", "publish"}

    # Without Redis the worker waits: what it has in hand, and what it is behind, can be seen.
    system.stack.redis.kill()
    send(system, [violation(f"w{number}") for number in range(40)])
    wait_until(lambda: sum(behind(system).values()) == 40, "the lag shows")
    wait_until(lambda: of(metrics(system), "flywheel_consumer_batches_in_hand") >= 1, "a batch is in hand")
    waiting = metrics(system)
    assert of(waiting, "flywheel_consumer_records_open") >= 1
    assert of(waiting, "flywheel_routing_records_in_total") == 33, "counted before it is safe"
    system.stack.redis.start()
    wait_until(lambda: behind(system) == {str(number): 0 for number in range(PARTITIONS)}, "it catches up")
    _check_that_all_adds_up(system, messages=73)
    found = metrics(system)
    assert of(found, "flywheel_routing_claim_retries_total") >= 1
    assert of(found, "flywheel_consumer_records_open") == of(found, "flywheel_consumer_batches_in_hand") == 0
    slowest = of(found, "flywheel_consumer_delay_seconds_sum", message="oldest")
    assert slowest >= of(found, "flywheel_routing_stage_seconds_sum", stage="claim") > 0.1


def behind(system: System) -> dict[str, int]:
    """The lag of each partition, by metrics; `/stats` says the same."""
    found = metrics(system)
    lag = {
        dict(labels)["partition"]: int(value)
        for (name, labels), value in found.items()
        if name == "flywheel_consumer_lag"
    }
    topics = {dict(labels)["topic"] for name, labels in found if name == "flywheel_consumer_lag"}
    assert topics <= {INPUT}
    return lag


def _check_that_all_adds_up(system: System, messages: int) -> None:
    found = metrics(system)
    outcomes = by_label(found, "flywheel_routing_records_out_total", "outcome")
    assert outcomes.keys() == set(OUTCOMES)
    assert outcomes.total() == of(found, "flywheel_routing_records_in_total") == messages
    classified = by_label(found, "flywheel_routing_classified_total", "outcome")
    reasons = by_label(found, "flywheel_routing_dead_letters_total", "reason")
    assert classified + Counter(dead_lettered=reasons.total()) == +outcomes
    assert of(found, "flywheel_routing_messages_total") == messages
    batches = of(found, "flywheel_routing_batches_total")
    assert 0 < batches <= messages
    for stage in ("decide", "claim", "publish"):
        assert of(found, "flywheel_routing_stage_seconds_count", stage=stage) == batches
    for message in ("oldest", "newest"):
        assert of(found, "flywheel_consumer_delay_seconds_count", message=message) == batches
    shown = stats(system, Role.ROUTE, "consumer")
    assert shown["lag"] == {INPUT: {str(number): 0 for number in range(PARTITIONS)}}
    assert shown["delay"]["oldest"]["count"] == batches
