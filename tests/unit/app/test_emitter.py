"""The emitter against a real HTTP server: every event arrives, and what was not taken is known."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

from app import emitter
from app.emitter import EmitFailed, LogEmitter


class Receiver(ThreadingHTTPServer):
    """An OTLP endpoint. `statuses` are answered in turn, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = list(statuses) or [200]
        self.requests: list[ExportLogsServiceRequest] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/logs"

    def records(self) -> list[Any]:
        return [
            record
            for request in self.requests
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        status = self.server.statuses[0] if len(self.server.statuses) == 1 else self.server.statuses.pop(0)
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        if status == 200:
            self.server.requests.append(ExportLogsServiceRequest.FromString(gzip.decompress(body)))
        self.send_response(status)
        answer = ExportLogsServiceResponse().SerializeToString()
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        pass


@contextmanager
def receiving(*statuses: int) -> Iterator[Receiver]:
    receiver = Receiver(*statuses)
    thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.shutdown()
        thread.join(10)
        receiver.server_close()


def events(count: int) -> list[dict[str, Any]]:
    return [
        {"event_id": f"e{number}", "event_type": "model_inference", "prompt": "grüße \U0001f600 \x00", "violations": []}
        for number in range(count)
    ]


def test_every_event_arrives_whole() -> None:
    sent = [*events(250), {"no": "type", "nested": {"deep": [1, 2.5, None, True]}}]
    with receiving() as receiver, LogEmitter(receiver.url, "my-app") as emitting:
        emitting.emit(sent[:100])
        emitting.emit(sent[100:])
        emitting.emit([])
    assert len(receiver.requests) == 2
    records = receiver.records()
    assert [orjson.loads(record.body.string_value) for record in records] == sent
    assert {record.event_name for record in records[:-1]} == {"model_inference"}
    assert records[-1].event_name == "audit_event"
    assert all(record.time_unix_nano > 0 and record.observed_time_unix_nano > 0 for record in records)
    services = {
        attribute.value.string_value
        for request in receiver.requests
        for resource in request.resource_logs
        for attribute in resource.resource.attributes
        if attribute.key == "service.name"
    }
    assert services == {"my-app"}


def test_the_token_is_presented() -> None:
    with receiving() as receiver:
        for token in ("hunter2", None):
            with LogEmitter(receiver.url, "a", token) as emitting:
                emitting.emit(events(1))
    assert [headers.get("authorization") for headers in receiver.headers] == ["Bearer hunter2", None]


def test_a_receiver_that_is_back_in_time_gets_them() -> None:
    with receiving(503, 200) as receiver, LogEmitter(receiver.url, "a") as emitting:
        emitting.emit(events(3))
    assert len(receiver.records()) == 3
    assert len(receiver.headers) == 2


@pytest.mark.parametrize("status", [503, 400, 401, 413])
def test_what_is_not_taken_is_told(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emitter, "TIMEOUT_S", 1.0)
    with receiving(status) as receiver, LogEmitter(receiver.url, "a") as emitting:
        with pytest.raises(EmitFailed) as failed:
            emitting.emit(events(7))
        assert "7 events" in str(failed.value)
        assert receiver.url in str(failed.value)
        receiver.statuses = [200]
        emitting.emit(events(7))  # the same emitter goes on
    assert len(receiver.records()) == 7


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emitter, "TIMEOUT_S", 0.5)
    with receiving() as gone:
        url = gone.url
    with LogEmitter(url, "a") as emitting, pytest.raises(EmitFailed, match="1 events"):
        emitting.emit(events(1))
