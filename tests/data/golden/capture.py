"""Keeps what an exporter posts: a receiver on loopback, and the folder of captured messages."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(__file__).with_name("captured")
_KEPT_HEADERS = ("content-type", "content-encoding")


@contextmanager
def receiver(answers: dict[str, bytes] | None = None) -> Iterator[tuple[str, list[tuple[str, dict[str, str], bytes]]]]:
    """A server on loopback: its address, and (path, headers, body) of what is posted to it.

    Args:
        answers: JSON to answer with, by path; other paths get an empty answer.
    """
    posted: list[tuple[str, dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            posted.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            answer = (answers or {}).get(self.path, b"")
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", posted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def keep(name: str, headers: dict[str, str], body: bytes) -> None:
    """Write a message as NAME.bin, and the headers that a producer would put on it as NAME.headers.json."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.bin").write_bytes(body)
    kept = {header: headers[header] for header in _KEPT_HEADERS if header in headers}
    (FOLDER / f"{name}.headers.json").write_text(json.dumps(kept, indent=2) + "\n")
