"""Find and end what a killed run left behind, and nothing else.

A child is known by its process id together with the time it started (a process id alone is soon another program's)
and the boot it started in. What it started itself is known by the session that it led, and, once it is gone, also by
the run's token in the environment. Signals go through a pidfd opened before these checks, so that a process id that
is given away in between cannot be hit.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from app.embedded.errors import EmbeddedError

TOKEN_VARIABLE = "EMBEDDED_RUN_TOKEN"  # noqa: S105 - the name of a variable, and a mark rather than a secret

_PROC = Path("/proc")
_POLL_S = 0.02
_DEAD_STATES = frozenset("ZX")


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A started child as its pid file keeps it. `start_time` is in clock ticks since boot (proc(5), field 22)."""

    name: str
    pid: int
    start_time: int
    boot_id: str
    token: str

    def write(self, path: Path) -> None:
        """Write the record to `path`, whole or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(asdict(self)) + "\n")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> ProcessRecord | None:
        """The record in `path`, or None where there is none that can be read."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class _Status:
    """What /proc/PID/stat says; see proc(5)."""

    state: str
    session: int
    start_time: int


def boot_id() -> str:
    """The kernel's name for this boot."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot, or None when there is no such process."""
    status = _status(pid)
    return status.start_time if status else None


def end_leftovers(record: ProcessRecord, within: float = 10.0) -> list[int]:
    """End the recorded process and all that remains of its session; the process ids that were ended.

    Raises:
        EmbeddedError: one of them is still there after `within` seconds.
    """
    if record.boot_id != boot_id():
        return []
    leader = _status(record.pid)
    if leader is not None and leader.start_time != record.start_time:
        return []  # the number is another program's now, so nothing of that session is left
    return end_session(record.pid, token=record.token if leader is None else None, within=within)


def end_session(session: int, token: str | None = None, within: float = 10.0) -> list[int]:
    """SIGKILL every process of a session and wait until all are gone; the process ids that were ended.

    The caller vouches that the session is its own: its leader is alive or not yet reaped, or `token` is given, which
    each process must then carry in its environment.

    Raises:
        EmbeddedError: one of them is still there after `within` seconds.
    """
    ended: list[int] = []
    deadline = time.monotonic() + within
    while members := _members(session, token):
        if time.monotonic() > deadline:
            raise EmbeddedError(f"processes {members} did not end within {within:g} s of SIGKILL. End them by hand")
        ended.extend(pid for pid in members if pid not in ended and _kill(pid, session, token))
        time.sleep(_POLL_S)
    return ended


def _members(session: int, token: str | None) -> list[int]:
    pids = (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())
    return [pid for pid in pids if _belongs(pid, session, token)]


def _belongs(pid: int, session: int, token: str | None) -> bool:
    status = _status(pid)
    if status is None or status.session != session or status.state in _DEAD_STATES:
        return False
    return token is None or _carries(pid, token)


def _carries(pid: int, token: str) -> bool:
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False
    return f"{TOKEN_VARIABLE}={token}".encode() in environment.split(b"\0")


def _kill(pid: int, session: int, token: str | None) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not _belongs(pid, session, token):
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def _status(pid: int) -> _Status | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name in parentheses may hold anything; field 3 comes first here
    return _Status(state=fields[0], session=int(fields[3]), start_time=int(fields[19]))
