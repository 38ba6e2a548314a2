"""One writer of audit entries, as a process: one entry after the other over one connection, each until it is taken.

Run as `audit_writer.py HOST PORT WRITER SECONDS`, the token on standard input; with `inf` for the seconds it goes on
until standard input ends. Then it prints a line a receipt, `ID DIGEST MILLISECONDS`. Only the standard library, and no
HTTP client: on two cores shared with the engine it must cost little.
"""

from __future__ import annotations

import hashlib
import json
import math
import select
import socket
import sys
import time

TIMEOUT_S = 15.0
PAUSE_S = 0.05
TAKEN = 200


class Away(Exception):
    """The engine did not answer, or not with a receipt: the same entry must be sent again."""


class Connection:
    """A kept-alive connection to the engine, opened when it is needed."""

    def __init__(self, host: str, port: int, token: str) -> None:
        self._address = (host, port)
        self._socket: socket.socket | None = None
        self._head = (
            f"POST /api/v1/log HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()

    def post(self, body: bytes) -> dict[str, str]:
        """Send an entry; its receipt. Raises Away, and RuntimeError where it is refused."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, TIMEOUT_S)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
            status, answer = self._answer(self._socket)
        except OSError as error:
            self.close()
            raise Away(str(error)) from error
        if status >= 500:
            raise Away(f"status {status}")
        if status != TAKEN:
            raise RuntimeError(f"refused with status {status}: {answer!r}")
        receipt: dict[str, str] = json.loads(answer)
        return receipt

    def close(self) -> None:
        """Close it; the next `post` opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _answer(self, connection: socket.socket) -> tuple[int, bytes]:
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more(connection)
        head = data[:end].lower()
        length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        body = data[end + 4 :]
        while len(body) < length:
            body += self._more(connection)
        return int(head.split(b" ", 2)[1]), body

    def _more(self, connection: socket.socket) -> bytes:
        data = connection.recv(65536)
        if not data:
            raise ConnectionResetError("the engine closed the connection")
        return data


def entry(writer: str, number: int) -> bytes:
    """An evaluation's entry as the policy client writes it: event text digested, some 700 bytes."""
    name = f"{writer}-{number}"
    digests = [{"digest": f"hmac-sha256:{hashlib.sha256(f'{name}{field}'.encode()).hexdigest()}"} for field in "pc"]
    return json.dumps(
        {
            "entry_id": name,
            "event_type": "constitutional_validation",
            "constitutional_hash": "cdd01ef066bc6cf2",
            "compliance_score": 0.25,
            "violations": ["harmful_content"],
            "context": {"prompt": digests[0], "content": digests[1], "iteration": 1, "type": "training"},
            "timestamp": "2026-01-31T12:00:00.000000Z",
            "compliant": False,
            "model_id": "assistant",
            "domain": "default",
            "decision_id": f"d-{name}",
            "constitution_digest": "148de9c5a7a44d19e56cd9ae1a554bf67847afb0c58f6e12fa29ac7ddfca9940",
        }
    ).encode()


def main() -> None:
    """Write until the time is up, then print the receipts."""
    host, port, writer, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    connection = Connection(host, port, sys.stdin.readline().strip())
    receipts: list[str] = []
    number = 0
    until = time.monotonic() + seconds
    while (started := time.monotonic()) < until and not (seconds == math.inf and select.select([0], [], [], 0)[0]):
        try:
            receipt = connection.post(entry(writer, number))
        except Away:
            time.sleep(PAUSE_S)
            continue
        receipts.append(f"{receipt['id']} {receipt['digest']} {1000 * (time.monotonic() - started):.2f}")
        number += 1
    connection.close()
    print("\n".join(receipts))


if __name__ == "__main__":
    main()
