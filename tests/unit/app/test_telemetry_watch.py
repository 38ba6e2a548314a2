"""Clients' latencies, and which records and cycles have spans."""

from __future__ import annotations

import logging
from typing import Any

import orjson
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_receiver import Receiver, context
from prometheus_client.exposition import generate_latest
from redis.asyncio import Redis

from agents.curation.agent import CurationHandler
from agents.routing.message import InboundMessage
from app.store import Database
from app.telemetry.correlation import correlated
from app.telemetry.curation_spans import CurationSpans
from app.telemetry.cycle_spans import CycleSpans, cycle_context
from app.telemetry.latency import MAX_OPERATIONS, ClientLatency
from app.telemetry.logs import JsonFormatter
from app.telemetry.metrics import ClientCollector, TrainingCollector, new_registry
from app.telemetry.spans import Tracing
from app.telemetry.tracing import SpanCounts
from models.cycle import Cycle, CycleState, TriggerType

FOLLOWED, LEFT = "f" * 32, "f" * 18 + "0" * 14
"""Traces that are followed, and not followed, at half the rate."""
SPAN_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{'a' * 32}-{SPAN_ID}-01"


async def test_commands_and_statements_are_timed_and_operations_are_bounded(redis_url: str) -> None:
    latency = ClientLatency()
    client = Redis.from_url(redis_url)
    latency.watch_redis(client)
    await client.get("nothing")
    await client.aclose()
    database = Database("sqlite://")
    latency.watch_database(database.engine)
    with database.read() as connection:
        connection.exec_driver_sql("SELECT 1")
    found = latency.snapshot()
    assert found["redis", "get"]["count"] == found["sql", "select"]["count"] == 1
    for number in range(2 * MAX_OPERATIONS):
        latency.observe("redis", f"command{number}", 0.1)
    assert len([place for place in latency.snapshot() if place[0] == "redis"]) == MAX_OPERATIONS + 1
    registry = new_registry()
    registry.register(ClientCollector(latency.snapshot))
    assert b'flywheel_client_seconds_count{client="redis",operation="other"}' in generate_latest(registry)


def test_no_job_at_work_is_zeros() -> None:
    registry = new_registry()
    told: dict[str, Any] = {"pii_found": 2}
    registry.register(TrainingCollector(lambda: told))
    assert registry.get_sample_value("flywheel_training_step", {"stage": "train"}) == 0
    told |= {"stage": "train", "done": 3, "total": 9, "tokens_per_s": 12.5}
    assert registry.get_sample_value("flywheel_training_step", {"stage": "train"}) == 3
    assert registry.get_sample_value("flywheel_training_steps", {"stage": "evaluate"}) == 0
    assert registry.get_sample_value("flywheel_training_tokens_per_second") == 12.5
    assert registry.get_sample_value("flywheel_pii_downstream_total", {"stage": "training"}) == 2


def routed(trace_id: str, header: str | None) -> InboundMessage:
    event = {
        "event_id": "e", "trace_id": trace_id, "span_id": SPAN_ID,
        "routing_metadata": {"identity": {"service": "s", "id": "e", "fingerprint": "0" * 32}},
    }  # fmt: skip
    headers = {} if header is None else {"traceparent": header.encode()}
    return InboundMessage("constitutional-violations", 0, 7, orjson.dumps(event), None, headers)


class Stored:
    """What the curator is given."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    def store(self, records: list[Any]) -> None:
        self.records += records


async def test_curation_follows_by_the_routers_rule_and_links_to_router_and_application() -> None:
    stored: Any = Stored()
    with Receiver() as receiver:
        tracing = Tracing(receiver.url, 0.5, "flywheel-curate", SpanCounts())
        handler = CurationHandler(stored, CurationSpans(tracing))
        prepared = await handler.prepare([routed(FOLLOWED, TRACEPARENT), routed(LEFT, None)])
        assert not receiver.spans
        await handler.finish(prepared)
        tracing.close(10.0)
        (span,) = receiver.spans
    application = f"{FOLLOWED}-{SPAN_ID}".encode()
    assert [context(link) for link in span.links] == [application, TRACEPARENT[3:-3].encode()]
    followed, left = (record.lineage.trace_links for record in stored.records)
    assert left is None
    assert [part[3:-3].encode() for part in followed.split(",")] == [application, context(span)]


def a_cycle(state: CycleState) -> Cycle:
    return Cycle(
        cycle_id="20260101-000000-abcdef", model_id="m", domain="default", state=state, trigger_type=TriggerType.COUNT,
        requested_by="curation", version=1, created_at="2026-01-01T00:00:00.000000Z",
        updated_at="2026-01-01T00:00:00.000000Z",
    )  # fmt: skip


def test_a_cycles_trace_is_the_same_whoever_works_on_it(tmp_path: Any) -> None:
    database = Database(f"sqlite:///{tmp_path}/store.db")
    database.migrate()
    spans: list[Span] = []
    for state in (CycleState.PROPOSED, CycleState.PREPARING, CycleState.REVISING):
        with Receiver() as receiver:
            tracing = Tracing(receiver.url, 0.01, "flywheel-train", SpanCounts())
            cycles = CycleSpans(tracing, database)
            with cycles.stage(a_cycle(state)) as stage:
                stage.moved(a_cycle(CycleState.REJECTED))
            with cycles.stage(a_cycle(CycleState.AWAITING_APPROVAL)):
                pass  # it waits: no span
            with cycles.stage(a_cycle(CycleState.REVISING)) as stage:
                stage.failed(ValueError("a prompt, perhaps"))
            tracing.close(10.0)
            spans += receiver.spans
    own = cycle_context("20260101-000000-abcdef")
    assert {span.trace_id.hex() for span in spans} == {f"{own.trace_id:032x}"}
    assert {span.parent_span_id.hex() for span in spans} == {f"{own.span_id:016x}"}
    assert len(spans) == 6
    assert [span.status.message for span in spans if span.status.message] == ["ValueError"] * 3


@pytest.mark.parametrize("traced", [True, False])
def test_log_lines_name_the_trace_of_the_work_at_hand(traced: bool) -> None:
    record = logging.makeLogRecord({"msg": "said", "name": "x"})
    formatter = JsonFormatter("worker")
    if not traced:
        assert "trace_id" not in orjson.loads(formatter.format(record))
        return
    with correlated(TRACEPARENT):
        line = orjson.loads(formatter.format(record))
    assert (line["trace_id"], line["span_id"]) == ("a" * 32, SPAN_ID)
