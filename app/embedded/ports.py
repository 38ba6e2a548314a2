"""Free loopback ports for child processes, and another try when somebody was faster."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from app.embedded.errors import EmbeddedError, PortTaken

Result = TypeVar("Result")

LOOPBACK = "127.0.0.1"
_FIRST = 20_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_DRAWS = 200

_lock = threading.Lock()
_given: set[int] = set()
_random = random.SystemRandom()


def free_port() -> int:
    """A loopback port that nothing listens on, different at every call of this process.

    Drawn from below the kernel's ephemeral range where there is room: a client that reconnects to a stopped server on
    an ephemeral port can be given that very port as its own, connect to itself, and keep the server from coming back.
    Between this call and the server's bind another program may take the port: start through `with_retry`.

    Raises:
        EmbeddedError: no free port was found.
    """
    ephemeral_low = int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.exists() else _FIRST
    with _lock:
        for _ in range(_DRAWS):
            wanted = _random.randrange(_FIRST, ephemeral_low) if ephemeral_low - _FIRST > _DRAWS else 0
            port = _bindable(wanted)
            if port is not None and port not in _given:
                _given.add(port)
                return port
    raise EmbeddedError(f"no free port on {LOOPBACK} after {_DRAWS} draws. End programs that hold ports")


def with_retry(start: Callable[[], Result], attempts: int = 5) -> Result:
    """Call `start`, which picks its ports anew each time, until none of them was taken by another program.

    Raises:
        PortTaken: at the last attempt; any other error at once.
    """
    for _ in range(attempts - 1):
        try:
            return start()
        except PortTaken:
            continue
    return start()


def _bindable(port: int) -> int | None:
    """The port bound for a moment (the kernel's choice for 0), or None when it is taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return None
        bound: int = probe.getsockname()[1]
        return bound
