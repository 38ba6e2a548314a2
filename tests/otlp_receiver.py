"""An OTLP/HTTP receiver of traces, for tests: a plain HTTP server on loopback that keeps the spans it is sent."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

PATH = "/v1/traces"


class Receiver:
    """Receives for as long as the block runs. `port` 0 picks a free one; a later receiver may take the same.

    `status` is what it answers; while `silent` is set it takes requests and does not answer them.
    """

    def __init__(self, port: int = 0) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self.requests = 0
        self.status = 200
        self.silent = threading.Event()
        self._speaks = threading.Event()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.receiver = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.port: int = self._server.server_address[1]

    @property
    def url(self) -> str:
        """The endpoint, without the path."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Listen no more, and leave unanswered what was not."""
        self._speaks.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, path: str, body: bytes) -> int:
        """Take a request; returns the HTTP status."""
        self.requests += 1
        if self.silent.is_set():
            self._speaks.wait()
        if path != PATH:
            return 404
        if self.status == 200:
            request = ExportTraceServiceRequest.FromString(body)
            for resource in request.resource_spans:
                self.resources.append({item.key: item.value.string_value for item in resource.resource.attributes})
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
        return self.status


def attributes(span: Span) -> dict[str, Any]:
    """A span's attributes, plain."""
    found = {}
    for item in span.attributes:
        kind = item.value.WhichOneof("value")
        found[item.key] = getattr(item.value, kind)
    return found


def context(span: Any) -> bytes:
    """Trace and span id of a span, or of what a link leads to, as they stand in a `traceparent`."""
    return f"{span.trace_id.hex()}-{span.span_id.hex()}".encode()


def ids(traceparent: bytes | None) -> bytes | None:
    """The same of a `traceparent`. The SDK's exporter does not tell of flags."""
    return None if traceparent is None else traceparent[3:-3]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    receiver: Receiver


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        status = self.server.receiver.take(self.path, body)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        """Say nothing."""
