"""`POST /v1/logs` of the routing worker's web over HTTP and a broker: what is answered, and what Kafka then has."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from loopback import serving
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from systems import read_topics, wait_until

from app.embedded.kafka import KafkaBroker
from app.embedded.mock_broker import MockBroker
from app.roles import Role
from app.settings import load_settings
from app.topics import AUDIT_EVENTS
from app.web import ingest, ingest_route
from app.web.api import create_web
from app.web.otlp import JSON, PROTOBUF
from app.workers import WorkerState

MAIL = "ada.lovelace@example.com"
TOKEN = "a token of the tests"


@dataclasses.dataclass
class Endpoint:
    """A routing worker's web, its address, and the topic that it writes."""

    client: httpx.Client
    bootstrap: str
    topic: str
    state: WorkerState

    def post(self, content: Any, content_type: str = PROTOBUF, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post("/v1/logs", content=content, headers={"content-type": content_type, **named})

    def messages(self) -> list[ExportLogsServiceRequest]:
        """What lies in the topic."""
        records = read_topics(self.bootstrap, [self.topic])[self.topic]
        assert all(dict(record.headers) == {"content-type": PROTOBUF.encode()} for record in records)
        return [ExportLogsServiceRequest.FromString(record.value) for record in records]

    def records(self) -> list[LogRecord]:
        return [
            record
            for message in self.messages()
            for resource in message.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    def ingested(self) -> dict[str, Any]:
        told = dict(self.state.snapshots["ingest"]())
        assert told.pop("in_flight") == 0
        return told

    def until_in_flight(self, count: int) -> None:
        """Wait until so many requests hold a place, as those do whose bodies have not come yet."""
        wait_until(lambda: self.state.snapshots["ingest"]()["in_flight"] == count, f"{count} requests in flight", 30)


Open = Callable[..., Endpoint]


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unique: Callable[[str], str]) -> Iterator[Open]:
    """Opens an endpoint at a broker, with a topic of its own, messages of at most so many bytes, and settings."""
    with contextlib.ExitStack() as stack:

        def start(broker: MockBroker | KafkaBroker, max_bytes: int = 1 << 20, **web: Any) -> Endpoint:
            spec = dataclasses.replace(AUDIT_EVENTS, name=unique("ingest"), max_message_bytes=max_bytes + 4096)
            monkeypatch.setattr(ingest, "AUDIT_EVENTS", spec)
            settings = load_settings(
                {"FLYWHEEL_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap, "FLYWHEEL_DATA_DIR": str(tmp_path)}
                | {f"FLYWHEEL_WEB__{name.upper()}": str(value) for name, value in web.items()}
            )
            state = WorkerState(settings, Role.ROUTE)
            url = stack.enter_context(serving(create_web(settings, Role.ROUTE, state)))
            client = stack.enter_context(httpx.Client(base_url=url, timeout=60.0, trust_env=False))
            return Endpoint(client, broker.bootstrap, spec.name, state)

        yield start


def request(*texts: str) -> ExportLogsServiceRequest:
    """A request with one record a text, in two resources."""
    made = ExportLogsServiceRequest()
    for name, some in (("first", texts[::2]), ("second", texts[1::2])):
        resource = made.resource_logs.add()
        resource.resource.attributes.add(key="service.name").value.string_value = name
        scope = resource.scope_logs.add()
        for text in some:
            scope.log_records.add(time_unix_nano=1763805600123456789, trace_id=b"t" * 16).body.string_value = text
    return made


def bodies(records: list[LogRecord]) -> list[str]:
    return sorted(record.body.string_value for record in records)


def in_json(message: ExportLogsServiceRequest) -> bytes:
    tree = MessageToDict(message)
    for resource in tree["resourceLogs"]:
        for record in resource["scopeLogs"][0].get("logRecords", []):
            record["traceId"] = (b"t" * 16).hex()
    return json.dumps(tree).encode()


def test_what_was_answered_200_is_in_kafka_and_scrubbed(broker: MockBroker | KafkaBroker, at: Open) -> None:
    endpoint = at(broker)
    sent: list[str] = []
    for kind in (PROTOBUF, JSON):
        for packed in (False, True):
            texts = [f"{kind} {packed} {number} of {MAIL}" for number in range(3)]
            message = request(*texts)
            content = message.SerializeToString() if kind == PROTOBUF else in_json(message)
            encoding = {"content_encoding": "gzip"} if packed else {}
            answer = endpoint.post(gzip.compress(content) if packed else content, kind, **encoding)
            assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
            assert answer.content == (b"" if kind == PROTOBUF else b"{}")
            sent += [text.replace(MAIL, "[EMAIL]") for text in texts]
            assert bodies(endpoint.records()) == sorted(sent), "acknowledged before Kafka had it"
    assert all((r.time_unix_nano, r.trace_id) == (1763805600123456789, b"t" * 16) for r in endpoint.records())
    assert len(endpoint.messages()) == 4
    assert endpoint.ingested() == {"scrubbed": {"EMAIL": 12}, "records": 12, "rejected": 0, "status_200": 4}


def test_a_request_without_records_is_taken_and_leaves_nothing(mock_broker: MockBroker, at: Open) -> None:
    endpoint = at(mock_broker)
    endpoint.post(request("to make the topic").SerializeToString())
    for content in (b"", request().SerializeToString()):
        assert endpoint.post(content).status_code == 200
    assert len(endpoint.messages()) == 1


def test_a_large_request_becomes_several_messages(broker: MockBroker | KafkaBroker, at: Open) -> None:
    endpoint = at(broker, max_bytes=20_000)
    texts = [f"{number} " + "x" * 500 for number in range(200)]
    answer = endpoint.post(request(*texts).SerializeToString())
    assert (answer.status_code, answer.content) == (200, b"")
    messages = endpoint.messages()
    assert bodies(endpoint.records()) == sorted(texts)
    assert len(messages) >= 6
    assert max(message.ByteSize() for message in messages) <= 20_000
    for message in messages:  # each record is still its own service's
        for resource in message.resource_logs:
            odd = resource.resource.attributes[0].value.string_value == "second"
            for record in resource.scope_logs[0].log_records:
                assert int(record.body.string_value.split()[0]) % 2 == odd


def test_a_record_larger_than_a_message_is_rejected_alone(broker: MockBroker | KafkaBroker, at: Open) -> None:
    endpoint = at(broker, max_bytes=20_000)
    message = request("first", "y" * 25_000, "third", "fourth")
    answer = endpoint.post(message.SerializeToString())
    told = ExportLogsServiceResponse.FromString(answer.content).partial_success
    assert (answer.status_code, told.rejected_log_records) == (200, 1)
    assert "20000 bytes" in told.error_message
    answer = endpoint.post(in_json(message), JSON)
    assert answer.json()["partialSuccess"]["rejectedLogRecords"] == "1"
    assert bodies(endpoint.records()) == sorted(["first", "third", "fourth"] * 2)
    assert endpoint.ingested() == {"scrubbed": {}, "records": 6, "rejected": 2, "status_200": 2}


@pytest.mark.kafka
def test_a_broker_with_a_smaller_limit_of_its_own_gets_smaller_messages(real_kafka: KafkaBroker, at: Open) -> None:
    """Its refusal of a batch left an idempotent producer unable to write to that partition."""
    from confluent_kafka.admin import AdminClient, NewTopic

    endpoint = at(real_kafka)
    admin = AdminClient({"bootstrap.servers": real_kafka.bootstrap})
    topic = NewTopic(endpoint.topic, num_partitions=2, config={"max.message.bytes": "3000"})
    admin.create_topics([topic])[endpoint.topic].result(30)
    # What gzip cannot make smaller.
    texts = [
        f"{number} " + bytes((number * 7919 + at * 104729) % 251 for at in range(300)).hex() for number in range(40)
    ]
    huge = "".join(f"{(number * 2654435761) % 2**32:08x}" for number in range(3000))
    answer = endpoint.post(request(*texts, huge).SerializeToString())
    assert ExportLogsServiceResponse.FromString(answer.content).partial_success.rejected_log_records == 1
    assert endpoint.post(request("afterwards").SerializeToString()).status_code == 200
    found = bodies(endpoint.records())
    assert set(found) == {*texts, "afterwards"}
    assert len(endpoint.messages()) > 3


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_refusals_are_statuses_in_the_requests_encoding(mock_broker: MockBroker, at: Open, kind: str) -> None:
    endpoint = at(mock_broker, token=TOKEN, max_body_bytes=5_000, max_decompressed_bytes=50_000)
    good, code = request("x").SerializeToString(), {}
    bearer = {"authorization": f"Bearer {TOKEN}"}
    endless = (b"x" * 1000 for _ in range(200))
    for status, content, headers in (
        (401, good, {}),
        (401, good, {"authorization": "Bearer wrong"}),
        (400, b"\xff{", bearer),
        (400, b"no gzip", {**bearer, "content_encoding": "gzip"}),
        (413, b" " * 6_000, bearer),
        (413, endless, bearer),
        (413, gzip.compress(b" " * 60_000), {**bearer, "content_encoding": "gzip"}),
        (415, good, {**bearer, "content_encoding": "br"}),
    ):
        answer = endpoint.post(content, kind, **headers)
        assert (answer.status_code, answer.headers["content-type"]) == (status, kind)
        parsed = Status.FromString(answer.content) if kind == PROTOBUF else Status(**answer.json())
        assert parsed.message
        code[status] = parsed.code
        assert ("www-authenticate" in answer.headers) == (status == 401)
    assert code == {401: 16, 400: 3, 413: 3, 415: 3}
    other = endpoint.post(good, "text/plain", **bearer)
    assert (other.status_code, other.headers["content-type"]) == (415, JSON)
    assert endpoint.post(b"", PROTOBUF, **bearer).status_code == 200
    assert endpoint.ingested()["records"] == 0


class Trickle:
    """A body that is half sent, and the rest when it is told to go on."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.go_on = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield self.content[:10]
        assert self.go_on.wait(60)
        yield self.content[10:]


def test_too_many_requests_are_told_to_come_again(mock_broker: MockBroker, at: Open) -> None:
    endpoint = at(mock_broker, max_requests=2)
    slow = [Trickle(request(f"slow {number}").SerializeToString()) for number in range(2)]
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(endpoint.post, trickle) for trickle in slow]
        try:
            endpoint.until_in_flight(2)
            refused = endpoint.post(request("third").SerializeToString())
        finally:
            for trickle in slow:
                trickle.go_on.set()
        assert [answer.result(60).status_code for answer in waiting] == [200, 200]
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert Status.FromString(refused.content).code == 8
    assert endpoint.post(request("fourth").SerializeToString()).status_code == 200
    assert {"slow 0", "slow 1", "fourth"} <= set(bodies(endpoint.records()))


def test_requests_wait_for_their_turn_but_not_for_ever(
    mock_broker: MockBroker, at: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "WORKING", 1)
    monkeypatch.setattr(ingest, "WAIT_S", 0.3)
    endpoint = at(mock_broker)
    slow = Trickle(request("slow").SerializeToString())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(endpoint.post, slow)
        try:
            endpoint.until_in_flight(1)
            refused = endpoint.post(request("late").SerializeToString())
        finally:
            slow.go_on.set()
        assert waiting.result(60).status_code == 200
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")


def test_a_body_that_never_comes_holds_no_place(
    mock_broker: MockBroker, at: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_route, "BODY_TIMEOUT_S", 0.3)
    endpoint = at(mock_broker, max_requests=1)
    slow = Trickle(request("slow").SerializeToString())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(endpoint.post, slow)
        try:
            endpoint.until_in_flight(1)
            endpoint.until_in_flight(0)
            assert endpoint.post(request("next").SerializeToString()).status_code == 200
        finally:
            slow.go_on.set()
        with contextlib.suppress(httpx.TransportError):  # the answer came before the body was sent
            assert waiting.result(60).status_code == 503


@pytest.mark.kafka
def test_while_kafka_is_away_senders_are_told_to_come_again(
    real_kafka: KafkaBroker, at: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "SEND_TIMEOUT_S", 3.0)
    endpoint = at(real_kafka)
    assert endpoint.post(request("before").SerializeToString()).status_code == 200
    real_kafka.stop()
    try:
        refused = endpoint.post(request("meanwhile").SerializeToString())
    finally:
        real_kafka.start()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert Status.FromString(refused.content).code == 14
    monkeypatch.setattr(ingest, "SEND_TIMEOUT_S", 60.0)
    assert endpoint.post(request("after").SerializeToString()).status_code == 200
    assert {"before", "after"} <= set(bodies(endpoint.records()))
