"""HTTP as bytes on a socket: a client that may send what no client library would."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
from dataclasses import dataclass
from typing import Any

from fuzz.frame import Broken, Case
from fuzz.values import Pieces, bytes_of

WITHIN_S = 120.0
LARGE = 64 * 1024
"""A server may close the connection on a body that is larger, and the answer is lost with it."""
TARGETS = ["/%00", "/%ff%fe", "//", "/..%2f..%2fetc/passwd", "/" + "a" * 5_000, "*", "http://evil.example/", "/%", ""]
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "X" * 300, "\x00"]
HEADERS: list[list[str]] = [
    *(["Content-Type", "text/plain"], ["Content-Type", "application/json; charset=utf-16"], ["Content-Type", ""]),
    *(["Content-Type", "multipart/form-data; boundary=x"], ["Content-Type", "application/x-www-form-urlencoded"]),
    *(["Content-Encoding", "gzip"], ["Accept", "text/html"], ["Accept", "\xff"], ["Expect", "100-continue"]),
    *(["Host", "evil.example"], ["X-Forwarded-For", "1.2.3.4, \xff"], ["Upgrade", "websocket"], ["Range", "bytes=0-1"]),
    *(
        ["X-HTTP-Method-Override", "DELETE"],
        ["Cookie", "a=b; " * 300],
        ["Cookie", "\xff=\xff"],
        ["X-Long", "x" * 20_000],
    ),
    *(
        ["Authorization", "Basic YTpi"],
        ["Authorization", "Bearer"],
        ["Authorization", "Bearer \xff\xfe"],
        ["If-None-Match", "*"],
    ),
]


@dataclass
class Answer:
    """What came back. `status` 0: the connection was closed without an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body, and the headers before it."""
        return f"{self.headers}\n{self.body.decode('utf-8', 'replace')}"


def spoil(draw: random.Random, case: Case) -> None:
    """Break the HTTP around a request, in one of ten cases."""
    if draw.random() > 0.1:
        return
    kind = draw.randrange(5)
    if kind == 0:
        case["method"] = draw.choice(METHODS)
    elif kind == 1:
        case["target"] = draw.choice(TARGETS)
    elif kind == 2:
        case["framing"] = draw.choice(("chunked", "more", "fewer", "none", "twice"))
    else:
        case["headers"] = case["headers"] + [draw.choice(HEADERS) for _ in range(draw.choice((1, 1, 2, 40)))]


def wire_of(case: Case) -> bytes:
    """The request's bytes."""
    body = bytes_of(case["body"])
    framing = case.get("framing", "length")
    headers: list[list[str]] = [["Host", "127.0.0.1"], ["Connection", "close"], *case["headers"]]
    if framing == "chunked":
        headers.append(["Transfer-Encoding", "chunked"])
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:]) if part) + b"0\r\n\r\n"
    elif framing != "none" and (body or case["method"] not in {"GET", "HEAD"}):
        length = len(body) + {"more": 10, "fewer": -5}.get(framing, 0)
        headers += [["Content-Length", str(length)]] * (2 if framing == "twice" else 1)
    head = f"{case['method']} {case['target']} HTTP/1.1\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in headers
    )
    return head.encode("latin-1", "replace") + b"\r\n" + body


def exchange(port: int, case: Case, *, until: bytes | None = None) -> Answer:
    """Send a case and read the answer; of a stream, as far as `until`. Raises `Broken` where none comes in time."""
    sent = wire_of(case)
    with socket.create_connection(("127.0.0.1", port), timeout=WITHIN_S) as connection:
        try:
            connection.sendall(sent)
            if case.get("framing") in {"more", "none"}:
                with contextlib.suppress(OSError):  # ENOTCONN, which has no class: reset between the two calls
                    connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before it was sent whole: the answer may have come all the same
        try:
            found = http.client.HTTPResponse(connection, method=case["method"])
            found.begin()
            body = found.read() if until is None else _until(found, until)
        except TimeoutError:
            raise Broken(f"no answer within {WITHIN_S:g} s") from None
        except (http.client.HTTPException, ConnectionError):
            return Answer(0, {}, b"")
        return Answer(found.status, {name.lower(): value for name, value in found.getheaders()}, body)


def plain(case: Case) -> bool:
    """Whether the request is whole HTTP, which a server answers."""
    return "framing" not in case and sum(len(text) * times for text, times in case["body"]) <= LARGE


def request(method: str, target: str, headers: list[list[str]], body: Pieces | None = None) -> Case:
    """A case."""
    return {"method": method, "target": target, "headers": headers, "body": body or []}


def json_request(method: str, target: str, token: str | None, body: str | None = None) -> Case:
    """A case with a JSON body, as a client of ours would send it."""
    headers: Any = [] if token is None else [["Authorization", f"Bearer {token}"]]
    if body is not None:
        headers = [*headers, ["Content-Type", "application/json"]]
    return request(method, target, headers, [] if body is None else [[body, 1]])


def _until(found: http.client.HTTPResponse, end: bytes) -> bytes:
    body = b""
    while end not in body:
        part = found.read1(65536)
        if not part:
            break
        body += part
    return body
