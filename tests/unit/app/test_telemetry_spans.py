"""Spans of the router: which messages have one, what it says and links to, and that delivery costs routing nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_receiver import Receiver, attributes, context, ids

from agents.routing import sample
from agents.routing.identity import EventIdentity, identify
from agents.routing.message import DecodedRecord, InboundMessage
from agents.routing.trace import BatchTrace, ContextOnly, record_context
from app.settings import SettingsError, load_settings
from app.telemetry import delivery
from app.telemetry.spans import MAX_LINKS, SpanTrace, Tracing
from app.telemetry.tracing import SpanCounts, open_tracing

WITHIN_S = 20.0
SPAN_ID = "00f067aa0ba902b7"
KEPT, LEFT = "f" * 14, "0" * 14
"""The random bits of a trace that is followed at half the rate, and of one that is not."""
NOWHERE = "http://127.0.0.1:9"


def trace_id(number: int, bits: str = KEPT) -> str:
    return f"{number + 1:018x}{bits}"


def message(offset: int, headers: dict[str, bytes] | None = None) -> InboundMessage:
    return InboundMessage("otel-audit-events", 3, offset, b"", None, headers or {})


def record(held: InboundMessage, event: dict[str, Any], index: int = 0) -> DecodedRecord:
    return DecodedRecord(held, index, event, "service")


def header(trace: BatchTrace, held: DecodedRecord) -> bytes | None:
    return trace.header(held, identify(held.event, held.service))


def events(traces: list[str]) -> list[dict[str, Any]]:
    return [{"event_id": f"e{number}", "trace_id": trace, "span_id": SPAN_ID} for number, trace in enumerate(traces)]


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {WITHIN_S:.0f} s"
        time.sleep(0.01)


@contextmanager
def tracing(url: str, rate: float = 0.5) -> Iterator[tuple[Tracing, SpanCounts]]:
    counts = SpanCounts()
    opened = Tracing(url, rate, "flywheel-route", counts)
    try:
        yield opened, counts
    finally:
        opened.close(WITHIN_S)


def spans(act: Callable[[BatchTrace], None], rate: float = 0.5) -> list[Span]:
    """What is exported of one batch."""
    with Receiver() as receiver:
        with tracing(receiver.url, rate) as (opened, counts):
            batch = opened.batch()
            act(batch)
            batch.end()
        assert counts.snapshot() == {
            "ended": len(receiver.spans),
            "exported": len(receiver.spans),
            "failed": 0,
            "dropped": 0,
            "waiting": 0,
        }
        return receiver.spans


# --- what is followed --------------------------------------------------------------------------------------------

TRACED = st.fixed_dictionaries(
    {"event_id": st.text(max_size=3), "trace_id": st.text("0123456789abcdef", min_size=32, max_size=32)},
    optional={
        "span_id": st.just(SPAN_ID),
        "tracestate": st.sampled_from(["ot=rv:00000000000000", "ot=rv:f" + "0" * 13]),
    },
)
UNTRACED = st.fixed_dictionaries(
    {"event_id": st.text(max_size=3)}, optional={"trace_id": st.sampled_from(["", "0" * 32])}
)


@given(st.lists(TRACED | UNTRACED, max_size=8), st.sampled_from([0.01, 0.3, 0.5, 1.0]))
def test_records_are_followed_by_the_rule_by_which_events_are_sampled(made: list[dict[str, Any]], rate: float) -> None:
    trace = SpanTrace(TRACERS[rate])
    for number, event in enumerate(made):
        held = record(message(number), event)
        identity = identify(event, "service")
        randomness = sample.trace_randomness(event)
        if randomness is None:
            randomness = sample.digest_randomness(identity.digest())
        followed = trace.header(held, identity) != record_context(held)
        assert followed == sample.keep(randomness, rate)


def test_the_smallest_rates_follow_nearly_nothing() -> None:
    with tracing(NOWHERE, 1e-18) as (opened, counts):
        batch = opened.batch()
        for event in events([trace_id(number, "f" * 13 + "e") for number in range(5)]):
            held = record(message(0), event)
            assert header(batch, held) == record_context(held)
        batch.end()
    assert counts.ended == 0


TRACERS: dict[float, Tracing] = {}


@pytest.fixture(scope="module", autouse=True)
def tracers() -> Iterator[None]:
    TRACERS.update({rate: Tracing(NOWHERE, rate, "service", SpanCounts()) for rate in (0.01, 0.3, 0.5, 1.0)})
    yield
    for tracer in TRACERS.values():
        tracer.close(0.1)


# --- what a span says --------------------------------------------------------------------------------------------


def test_a_followed_record_carries_its_messages_span_and_the_span_links_to_its_context() -> None:
    followed, other = events([trace_id(1), trace_id(2, LEFT)])
    carried: list[bytes | None] = []

    def act(trace: BatchTrace) -> None:
        held = message(7)
        trace.saw(held, 5)
        carried.extend(header(trace, record(held, event, index)) for index, event in enumerate([other, followed]))
        carried.append(header(trace, record(message(8), other)))

    before = time.time_ns()
    (span,) = spans(act)
    own, made, elsewhere = carried
    assert own == elsewhere == f"00-{other['trace_id']}-{SPAN_ID}-01".encode()
    assert ids(made) == context(span)
    assert int((made or b"")[-2:], 16) & 1, "it is sampled"
    assert [context(link) for link in span.links] == [f"{followed['trace_id']}-{SPAN_ID}".encode()]
    assert (span.name, span.kind, span.parent_span_id) == ("otel-audit-events process", Span.SPAN_KIND_CONSUMER, b"")
    assert before <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns()
    assert attributes(span) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "otel-audit-events",
        "messaging.destination.partition.id": "3",
        "messaging.kafka.offset": 7,
        "messaging.consumer.group.name": "flywheel-route",
        "flywheel.message.records": 5,
        "flywheel.message.routed": 2,
        "flywheel.message.dropped": 3,
    }


def test_each_message_has_one_span_of_a_trace_of_its_own() -> None:
    made = events([trace_id(number) for number in range(6)])

    def act(trace: BatchTrace) -> None:
        for offset in range(3):
            held = message(offset)
            trace.saw(held, 2)
            for index in range(2):
                header(trace, record(held, made[offset * 2 + index], index))

    found = spans(act)
    assert [attributes(span)["messaging.kafka.offset"] for span in found] == [0, 1, 2]
    assert [attributes(span)["flywheel.message.routed"] for span in found] == [2, 2, 2]
    assert len({span.trace_id for span in found}) == 3
    assert [len(span.links) for span in found] == [2, 2, 2]
    assert len({span.start_time_unix_nano for span in found}) == 1, "they began with the batch"


def test_links_are_bounded_and_distinct_and_begin_with_the_messages_own_context() -> None:
    own = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    same = events([trace_id(0)] * 300)
    many = events([trace_id(number) for number in range(300)])

    def act(trace: BatchTrace) -> None:
        for offset, made in enumerate((same, many)):
            held = message(offset, {"traceparent": own})
            trace.saw(held, 300)
            for index, event in enumerate(made):
                header(trace, record(held, event, index))

    first, second = spans(act)
    assert [context(link) for link in first.links] == [ids(own), f"{trace_id(0)}-{SPAN_ID}".encode()]
    assert len(second.links) == MAX_LINKS == 128
    assert context(second.links[0]) == ids(own)
    assert attributes(second)["flywheel.message.routed"] == 300


def test_records_without_a_context_are_followed_and_linked_to_nothing() -> None:
    def act(trace: BatchTrace) -> None:
        carried = header(trace, record(message(0), {"event_id": "e", "trace_id": "no trace"}))
        assert carried is not None

    (span,) = spans(act, rate=1.0)
    assert not span.links


def test_a_batch_that_never_ends_exports_nothing() -> None:
    with Receiver() as receiver:
        with tracing(receiver.url, 1.0) as (opened, counts):
            header(opened.batch(), record(message(0), {"event_id": "e"}))
        assert counts.ended == 0
        assert receiver.requests == 0


def test_the_worker_names_itself() -> None:
    with Receiver() as receiver:
        with tracing(receiver.url, 1.0) as (opened, _):
            batch = opened.batch()
            header(batch, record(message(0), {"event_id": "e"}))
            batch.end()
        assert receiver.resources[0]["service.name"] == "flywheel-route"


# --- delivery ----------------------------------------------------------------------------------------------------


def end_spans(opened: Tracing, count: int) -> None:
    batch = opened.batch()
    for number in range(count):
        header(batch, record(message(number), {"event_id": str(number)}))
    batch.end()


def test_what_a_silent_receiver_leaves_is_bounded_counted_and_given_up_at_the_deadline() -> None:
    with Receiver() as receiver:
        receiver.silent.set()
        counts = SpanCounts()
        opened = Tracing(receiver.url, 1.0, "service", counts)
        end_spans(opened, delivery.BATCH)
        wait_until(lambda: receiver.requests, "a first batch is on its way")
        started = time.monotonic()
        end_spans(opened, 2000)
        assert time.monotonic() - started < delivery.EXPORT_TIMEOUT_S, "it waited for the receiver"
        assert (counts.ended, counts.exported, counts.failed) == (2000 + delivery.BATCH, 0, 0)
        assert counts.waiting == delivery.MAX_WAITING
        assert counts.dropped == 2000 + delivery.BATCH - delivery.MAX_WAITING
        closing = time.monotonic()
        opened.close(0.5)
        assert time.monotonic() - closing < 2.0
        assert (counts.waiting, counts.dropped) == (0, counts.ended)


def test_a_receiver_that_is_away_costs_its_spans_and_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Receiver() as receiver, tracing(receiver.url, 1.0) as (opened, counts):
        receiver.status = 400
        for number in range(1, 3):
            end_spans(opened, delivery.BATCH)
            wait_until(lambda number=number: counts.failed == number * delivery.BATCH, "a batch is refused")  # type: ignore[misc]
        receiver.status = 200
        end_spans(opened, delivery.BATCH)
        wait_until(lambda: counts.exported == delivery.BATCH, "the receiver takes spans again")
    told = [
        entry.getMessage() for entry in caplog.records if "opentelemetry" in entry.name or "telemetry" in entry.name
    ]
    refused, again = told
    assert refused.startswith(f"{receiver.url} takes no spans (Failed to export spans batch code: 400")
    assert again == f"{receiver.url} takes spans again; {2 * delivery.BATCH} were lost so far"


@pytest.mark.parametrize("failing", ["start_span", "get_span_context", "add_link", "set_attributes", "end"])
def test_a_fault_of_the_tracer_is_no_fault_of_the_router(failing: str, caplog: pytest.LogCaptureFixture) -> None:
    class Faulty:
        def __getattr__(self, name: str) -> Any:
            if name == failing:
                raise RuntimeError("the tracer is broken")
            return getattr(self.inner, name)

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def start_span(self, *arguments: Any, **named: Any) -> Any:
            if failing == "start_span":
                raise RuntimeError("the tracer is broken")
            return Faulty(self.inner.start_span(*arguments, **named))

    with tracing(NOWHERE, 1.0) as (opened, counts):
        opened.tracer = Faulty(opened.tracer)  # type: ignore[assignment]
        batch = opened.batch()
        (event,) = events([trace_id(0)])
        assert header(batch, record(message(0), event)) is not None
        batch.end()
    assert counts.ended == 0
    assert "A span was not" in caplog.text


def test_a_stop_delivers_what_has_ended() -> None:
    with Receiver() as receiver:
        with tracing(receiver.url, 1.0) as (opened, counts):
            end_spans(opened, 3)
        assert len(receiver.spans) == counts.exported == 3


def test_grpc_receivers_are_spoken_to() -> None:
    grpc = pytest.importorskip("grpc", reason="grpcio is missing. Provide it with: make test")
    from concurrent.futures import ThreadPoolExecutor

    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

    class Service(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
        taken = 0

        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol names it
            self.taken += sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)
            return trace_service_pb2.ExportTraceServiceResponse()

    service, server = Service(), grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with tracing(f"grpc://127.0.0.1:{port}", 1.0) as (opened, counts):
            end_spans(opened, 3)
        assert service.taken == counts.exported == 3
    finally:
        server.stop(0).wait()


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"FLYWHEEL_TELEMETRY__OTLP_ENDPOINT": NOWHERE, "FLYWHEEL_TELEMETRY__TRACE_SAMPLE_RATE": "0"}],
)
async def test_traces_are_off_without_an_endpoint_and_at_a_rate_of_zero(settings: dict[str, str]) -> None:
    async with open_tracing(load_settings(settings).telemetry, "service", SpanCounts()) as begin:
        assert isinstance(begin(), ContextOnly)


async def test_an_sdk_that_is_disabled_makes_no_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    settings = load_settings(
        {"FLYWHEEL_TELEMETRY__OTLP_ENDPOINT": NOWHERE, "FLYWHEEL_TELEMETRY__TRACE_SAMPLE_RATE": "1"}
    )
    async with open_tracing(settings.telemetry, "service", SpanCounts()) as begin:
        identity = EventIdentity("service", "e", "f")
        assert begin().header(record(message(0), {"event_id": "e"}), identity) is None


async def test_the_endpoint_is_flushed_when_tracing_ends() -> None:
    counts = SpanCounts()
    with Receiver() as receiver:
        settings = load_settings(
            {"FLYWHEEL_TELEMETRY__OTLP_ENDPOINT": receiver.url, "FLYWHEEL_TELEMETRY__TRACE_SAMPLE_RATE": "1"}
        )
        async with open_tracing(settings.telemetry, "service", counts) as begin:
            batch = begin()
            header(batch, record(message(0), {"event_id": "e"}))
            batch.end()
        assert len(receiver.spans) == counts.exported == 1


@pytest.mark.parametrize("url", ["", "collector:4318", "ftp://collector", "http://", "grpc://collector:4317/v1/traces"])
def test_an_endpoint_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"telemetry\.otlp_endpoint: .*given"):
        load_settings({"FLYWHEEL_TELEMETRY__OTLP_ENDPOINT": url})


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("https://c/otlp/", "https://c/otlp/v1/traces"),
        ("http://c:4318/v1/traces", "http://c:4318/v1/traces"),
    ],
)
def test_the_path_of_traces_is_added_once(endpoint: str, expected: str) -> None:
    sender, _ = delivery.exporter(endpoint)
    assert sender._endpoint == expected  # type: ignore[attr-defined]
    sender.shutdown()
