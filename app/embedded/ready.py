"""Conditions by which a started process counts as ready. Each is asked repeatedly and answers at once."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from app.embedded.ports import LOOPBACK

if TYPE_CHECKING:
    from app.embedded.process import ManagedProcess

Ready = Callable[["ManagedProcess"], bool]


def log_shows(text: str) -> Ready:
    """`text` stands in what the process has logged since it was started."""
    return lambda process: text in process.log()


def file_present(path: Path) -> Ready:
    """`path` exists. The process must put it there whole, and nobody before it."""
    return lambda process: path.exists()  # noqa: ARG005


def listening(port: int) -> Ready:
    """Something accepts connections on the loopback port."""

    def ready(_: ManagedProcess) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            return probe.connect_ex((LOOPBACK, port)) == 0

    return ready


def http_ok(url: str) -> Ready:
    """A GET of `url` answers with a 2xx status."""

    def ready(_: ManagedProcess) -> bool:
        try:
            return httpx.get(url, timeout=2.0, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    return ready
