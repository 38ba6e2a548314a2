"""The whole path: SDK -> collector -> Kafka -> routing worker -> topics, every event accounted for."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from collector_parts import collector_program, log, logs, send
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from pipelines import HASH, INPUT, OUTCOMES, Traffic
from pydantic import SecretStr
from systems import read_topics, running, stats, wait_until

from app.embedded.collector import CollectorServer
from app.embedded.stack import BrokerKind
from app.emitter import LogEmitter
from app.roles import Role
from otel.subject import SubjectTokenizer

KEY = "a key of the test, longer than sixteen bytes"
RESOURCE = Resource.create({"service.name": "assistant", "owner": "ada@private.example.org"})

GENAI = {
    "event_id": "genai",
    "gen_ai.request.model": "alpha",
    "gen_ai.usage.input_tokens": 12,
    "gen_ai.input.messages": [
        {"role": "user", "parts": [{"type": "text", "content": "I am gina@private.example.org"}]}
    ],
    "constitutional_hash": HASH,
    "compliance_score": 0.1,
    "violations": ["privacy of gina@private.example.org"],
    "user": {"id": "gina@private.example.org", "mail": "gina@private.example.org"},
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", ["mock", pytest.param("real", marks=pytest.mark.kafka)])
def test_events_of_the_sdk_pass_the_collector_and_the_router(tmp_path: Path, broker: BrokerKind) -> None:
    program = collector_program()
    traffic = Traffic("C", 20)
    with running(tmp_path, broker, None, {"pii": {"subject_key": SecretStr(KEY)}}) as system:
        bootstrap = system.stack.broker.bootstrap
        collector = system.stack.add(CollectorServer(system.run, bootstrap, broker, program))
        system.start_workers([Role.ROUTE])
        events = traffic.feedback + traffic.events
        with LogEmitter(collector.endpoint("logs"), "assistant") as emitter:
            for start in range(0, len(events), 50):
                emitter.emit(events[start : start + 50])
        send(collector, "logs", logs([log("a call", GENAI)]))
        sent = len(events) + 1
        wait_until(lambda: stats(system, Role.ROUTE, "routing").get("in", 0) >= sent, "all events are counted", 60.0)
        snapshot = stats(system, Role.ROUTE, "routing")
        assert snapshot["in"] == sent == sum(snapshot[name] for name in OUTCOMES)

        outcome = traffic.outcome
        kept = snapshot["by_classification"]["routed"].get("policy_evaluation", 0)
        assert {name: snapshot[name] for name in ("filtered", "duplicate", "dead_lettered", "id_conflict")} == {
            "filtered": outcome["filtered"],
            "duplicate": outcome["duplicate"],
            "dead_lettered": outcome["dead"],
            "id_conflict": outcome["conflict"],
        }
        topics = read_topics(bootstrap)
        assert {topic: len(found) for topic, found in topics.items() if found} == {
            "constitutional-violations": outcome["violation"] + 1,
            "model-optimization-triggers": outcome["trigger"],
            "human-feedback-loops": outcome["feedback"],
            "policy-evaluations": kept,
            "audit-trail-events": outcome["trail"],
            "audit-dead-letters": outcome["dead"],
        }

        # The collector leaves persons to the router, which has the key: each is still one person, and nobody's name.
        tokens = SubjectTokenizer(KEY.encode())
        people = {tokens.token(f"personC{ten}@private.example.org") for ten in range(20)}
        violations = [orjson.loads(record.value or b"") for record in topics["constitutional-violations"]]
        assert {event["subject_id"] for event in violations if "subject_id" in event} == people
        # An application instrumented for GenAI sends maps and lists in attributes; they are read as if nothing was
        # done to them.
        (call,) = (event for event in violations if event["event_id"] == GENAI["event_id"])
        assert call["prompt"] == "I am [EMAIL]"
        assert call["model_id"] == "alpha"
        assert call["violations"] == ["privacy of [EMAIL]"]
        assert call["input_tokens"] == 12
        assert call["user.id"] == tokens.token("gina@private.example.org")
        routed = b"\n".join(record.value or b"" for found in topics.values() for record in found)
        assert not [value for value in traffic.planted() if value in routed]
        # On its own topic only the subjects are still there, for the router.
        taken = b"\n".join(record.value or b"" for record in read_topics(bootstrap, [INPUT])[INPUT])
        for value in traffic.planted():
            assert taken.count(value) == taken.count(b'"subject_id":"' + value), value
        assert violations[0]["constitutional.hash_match"] is True
        assert violations[0]["constitutional.compliant"] is False
        assert _traces_and_metrics_arrive(collector, bootstrap)


def _traces_and_metrics_arrive(collector: CollectorServer, bootstrap: str) -> bool:
    """Spans and metrics of the SDK, by gRPC, with personal data in them."""
    tracers = TracerProvider(resource=RESOURCE)
    tracers.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(collector.grpc, insecure=True)))
    with tracers.get_tracer("test").start_as_current_span("call of bob@private.example.org") as span:
        span.set_attribute("client.address", "198.51.100.77")
        span.record_exception(ValueError("no carol@private.example.org"))
        span.set_status(trace.StatusCode.ERROR, "failed for dora@private.example.org")
    tracers.shutdown()
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(collector.grpc, insecure=True))
    meters = MeterProvider([reader], resource=RESOURCE)
    meters.get_meter("test").create_counter("calls").add(3, {"caller": "eve@private.example.org"})
    meters.shutdown()

    def raw(topic: str) -> bytes:
        return b"".join(record.value or b"" for record in read_topics(bootstrap, [topic])[topic])

    wait_until(lambda: raw("otel-traces") and raw("otel-metrics"), "traces and metrics come out", 30.0)
    spans, metrics = raw("otel-traces"), raw("otel-metrics")
    assert b"@private.example.org" not in spans + metrics
    (found,) = TracesData.FromString(spans).resource_spans[0].scope_spans[0].spans
    assert found.name == "call of [EMAIL]"
    assert found.status.message == "failed for [EMAIL]"
    (counter,) = MetricsData.FromString(metrics).resource_metrics[0].scope_metrics[0].metrics
    assert counter.sum.data_points[0].as_int == 3
    return True
