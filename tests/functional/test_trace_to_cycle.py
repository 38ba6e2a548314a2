"""One trace id, from an application's span to the cycle that used its event, found in an OTLP receiver.

Real: the SDK, the Collector, Apache Kafka, all workers and engines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from collector_parts import collector_program
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_receiver import PATH, Receiver, attributes, context
from pipelines import HASH, INPUT
from systems import read_topics, running, wait_until
from traced_application import NAME, Application, linked, named

from app.embedded.collector import CollectorServer
from app.embedded.system import System
from app.roles import Role
from models.cycle import CycleState

pytestmark = [pytest.mark.torch, pytest.mark.kafka, pytest.mark.timeout(420)]

EVENTS = 4
VIOLATIONS = "constitutional-violations"
SETTINGS: dict[str, dict[str, Any]] = {
    "curation": {"min_examples": EVENTS, "settle_s": 0.5, "held_out_share": 0.0},
    # A model that nobody approved: the gate refuses a cycle after its first job, which needs no model either.
    "training": {"base_model": "/nowhere/model", "poll_s": 0.2},
}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


@pytest.fixture(scope="module")
def system(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    pytest.importorskip("torch", reason="torch is missing. Provide it with: make test")
    with running(tmp_path_factory.mktemp("traced"), "real", None, SETTINGS) as started:
        started.change({"telemetry": {"otlp_endpoint": receiver.url, "trace_sample_rate": 1.0}})
        started.start_engines()
        started.start_workers([Role.ROUTE, Role.CURATE, Role.TRAIN])
        yield started


@pytest.fixture(params=["collector", "router"])
def logs_url(request: pytest.FixtureRequest, system: System) -> str:
    """Where applications send their events: to the Collector before Kafka, or to the router's own endpoint."""
    if request.param == "router":
        return f"{system.url(Role.ROUTE)}/v1/logs"
    program = collector_program()
    return system.stack.add(CollectorServer(system.run, system.stack.broker.bootstrap, "real", program)).endpoint(
        "logs"
    )


def violation(model: str, number: int) -> dict[str, Any]:
    return {
        "event_id": f"{model} {number}",
        "constitutional_hash": HASH,
        "violations": ["harmful_content"],
        "compliance_score": 0.2,
        "model_id": model,
        # Answers that the policy engine finds nothing wrong with: no model has to revise them.
        "prompt": f"question traced {number}",
        "response": f"answer traced {number}",
    }


def test_one_trace_leads_from_an_applications_span_to_the_cycle_that_used_the_event(
    system: System, receiver: Receiver, logs_url: str, request: pytest.FixtureRequest
) -> None:
    model = request.node.callspec.params["logs_url"]
    application = Application(logs_url, f"{receiver.url}{PATH}")
    told = [application.call(violation(model, number)) for number in range(EVENTS)]
    application.flush()
    application.close()
    wait_until(lambda: cycles_of(receiver, model), "the cycle has ended", 120)
    (cycle,) = cycles_of(receiver, model)
    first = told[0]
    wait_until(lambda: len(linked(receiver.spans, first)) >= 4, "all hops have told of the trace", 20)

    # The producing span is there under its own trace id, which is found at each hop, and each leads to the one before.
    assert first in [context(span) for span in named(receiver.spans, "call")]
    hops = {span.name: span for span in linked(receiver.spans, first)}
    router, curation = hops[f"{INPUT} process"], hops[f"{VIOLATIONS} process"]
    assert hops.keys() == {router.name, curation.name, "cycle preparing", "optimization cycle"}
    assert context(router) in [context(link) for link in curation.links]
    assert context(curation) in [context(link) for link in cycle.links]
    assert set(told) <= {context(link) for link in cycle.links}
    # Kafka's records carry it on.
    records = read_topics(system.settings.kafka.bootstrap_servers, [VIOLATIONS])[VIOLATIONS]
    routed = [dict(record.headers) for record in records if json.loads(record.value or b"")["model_id"] == model]
    assert {headers["traceparent"][3:-3] for headers in routed} == {context(router)}

    # The stages are in the cycle's own trace, under its span.
    stages = [span for span in receiver.spans if span.trace_id == cycle.trace_id and span is not cycle]
    assert {span.name for span in stages} >= {"cycle proposed", "cycle preparing", "cycle revising"}
    assert {bytes(span.parent_span_id) for span in stages} == {cycle.span_id}
    assert attributes(cycle)["flywheel.cycle.state"] == CycleState.REJECTED
    workers = {f"flywheel-{role.value}" for role in (Role.ROUTE, Role.CURATE, Role.TRAIN)}
    assert {resource["service.name"] for resource in receiver.resources} == {NAME, *workers}
    # The log of the work names the trace.
    lines = [json.loads(line) for line in system.processes["worker-train"].log().splitlines() if line.startswith("{")]
    assert cycle.trace_id.hex() in {line.get("trace_id") for line in lines}


def cycles_of(receiver: Receiver, model: str) -> list[Span]:
    """The spans of a model's ended cycles."""
    found = named(receiver.spans, "optimization cycle")
    return [span for span in found if attributes(span)["flywheel.model.id"] == model]
