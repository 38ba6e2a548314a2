"""Child processes that log to a file, are waited for, are stopped cleanly, and never outlive their parent.

Each child leads a session of its own: Ctrl-C in the terminal reaches only the parent, which stops the children in
order, and all that a child has started can be found and ended with it. Three things keep children from being left
over: `stop`, the kernel's parent-death signal (`launch.py`), and the process record that the next run reads
(`run_directory.py`).
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

from app.embedded.errors import NotReady, PortTaken, ProcessExited
from app.embedded.leftovers import TOKEN_VARIABLE, ProcessRecord, boot_id, end_session, start_time
from app.embedded.ready import Ready
from app.embedded.run_directory import RunDirectory

_LAUNCHER = Path(__file__).with_name("launch.py")
_POLL_S = 0.02
_TAIL_BYTES = 16_384
_TAIL_LINES = 20
_PORT_TAKEN = "address already in use"


@dataclass(frozen=True, slots=True)
class Program:
    """What to run and how to tell that it works.

    Args:
        name: names the log and the process record; unique within the run.
        argv: the program and its arguments.
        env: variables added to the parent's environment.
        cwd: working directory; the parent's where None.
        ready: condition to wait for after the start; None waits for nothing.
        ready_within: seconds until a process that is not ready is given up.
        stop_within: seconds between the stop signal and SIGKILL.
        stop_signal: the signal that asks the program to end.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    ready: Ready | None = None
    ready_within: float = 30.0
    stop_within: float = 10.0
    stop_signal: signal.Signals = signal.SIGTERM


class Service(Protocol):
    """What a `ProcessGroup` holds: one process, or a service around one."""

    def start(self) -> None:
        """Start and wait until ready."""

    def stop(self) -> None:
        """End it cleanly; nothing happens where it does not run."""

    def check(self) -> None:
        """Raise `ProcessExited` when it ended by itself."""


class ManagedProcess:
    """One child process. May be started, stopped and started again, from any thread."""

    def __init__(self, run: RunDirectory, program: Program) -> None:
        self.program = program
        self.log_path = run.logs / f"{program.name}.log"
        self._record_path = run.pids / f"{program.name}.json"
        self._token = run.token
        self._popen: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._stopping = threading.RLock()

    @property
    def pid(self) -> int | None:
        """The process id while it is started and not yet stopped."""
        return self._popen.pid if self._popen else None

    @property
    def running(self) -> bool:
        """Whether it is started and has not ended."""
        return self._popen is not None and not _ended(self._popen.pid)

    def start(self) -> None:
        """Start the program and wait until it is ready.

        Raises:
            ProcessExited: it ended before it was ready (`PortTaken` where its port was another program's).
            NotReady: it was not ready in time, and has been ended.
            RuntimeError: it is started already.
        """
        if self._popen is not None:
            raise RuntimeError(f"{self.program.name} is started already (process {self._popen.pid})")
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        self._popen = _spawner.run(self._spawn)
        try:
            self._record(self._popen.pid)
            self._wait_ready()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask it to end, wait, then end by SIGKILL whatever is left of it and of what it started."""
        with self._stopping:
            if self._popen is None:
                return
            if self.running:
                self._popen.send_signal(self.program.stop_signal)
                deadline = time.monotonic() + self.program.stop_within
                while self.running and time.monotonic() < deadline:
                    time.sleep(_POLL_S)
            self._finish(self._popen)

    def kill(self) -> None:
        """End it by SIGKILL, as a crash would."""
        with self._stopping:
            if self._popen is not None:
                self._finish(self._popen)

    def check(self) -> None:
        """Raise `ProcessExited` when it ended by itself."""
        if self._popen is not None and not self.running:
            raise self._exited(self._popen.pid)

    def log(self) -> str:
        """What it has written since its last start."""
        with self.log_path.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def _spawn(self) -> subprocess.Popen[bytes]:
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid())]
        environment = {**os.environ, **self.program.env, TOKEN_VARIABLE: self._token}
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [*launcher, *self.program.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.program.cwd,
                env=environment,
                start_new_session=True,
            )

    def _record(self, pid: int) -> None:
        started = start_time(pid)
        if started is not None:
            ProcessRecord(self.program.name, pid, started, boot_id(), self._token).write(self._record_path)

    def _wait_ready(self) -> None:
        if self.program.ready is None:
            return
        deadline = time.monotonic() + self.program.ready_within
        while True:
            self.check()
            if self._popen is None:
                raise NotReady(self.program.name, "was stopped while it started", self.log_path, self._tail())
            if self.program.ready(self):
                return
            if time.monotonic() > deadline:
                what = f"was not ready within {self.program.ready_within:g} s"
                raise NotReady(self.program.name, what, self.log_path, self._tail())
            time.sleep(_POLL_S)

    def _exited(self, pid: int) -> ProcessExited:
        status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        how = "by signal" if status and status.si_code != os.CLD_EXITED else "with code"
        what = f"ended {how} {status.si_status if status else 'unknown'}"
        kind = PortTaken if _PORT_TAKEN in self.log().lower() else ProcessExited
        return kind(self.program.name, what, self.log_path, self._tail())

    def _tail(self) -> str:
        return "\n".join(self.log()[-_TAIL_BYTES:].splitlines()[-_TAIL_LINES:])

    def _finish(self, popen: subprocess.Popen[bytes]) -> None:
        # The leader is not reaped yet, so its number, which is also its session's, cannot be another program's.
        end_session(popen.pid)
        popen.wait()
        self._record_path.unlink(missing_ok=True)
        self._popen = None


AnyService = TypeVar("AnyService", bound=Service)


class ProcessGroup:
    """Services in the order they were started; stopped in the reverse order when the block ends."""

    def __init__(self) -> None:
        self._services: list[Service] = []

    def start(self, service: AnyService) -> AnyService:
        """Start a service, wait until it is ready, and take charge of it."""
        service.start()
        self._services.append(service)
        return service

    def check(self) -> None:
        """Raise `ProcessExited` when one of them has ended by itself."""
        for service in self._services:
            service.check()

    def stop(self) -> None:
        """Stop all, latest first. An error stopping one does not keep the others running."""
        errors: list[Exception] = []
        while self._services:
            try:
                self._services.pop().stop()
            except Exception as error:  # noqa: BLE001 - every service gets its turn; all errors are raised below
                errors.append(error)
        if errors:
            raise ExceptionGroup("services did not stop", errors)

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _ended(pid: int) -> bool:
    """Whether a child has ended, without reaping it: its number stays its own until `_finish`."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


class _Spawner:
    """Starts children from one thread that lasts as long as the process.

    The parent-death signal is sent when the *thread* that started the child ends, so a child started from a pool's
    thread would die with that thread.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Spawn, Future[subprocess.Popen[bytes]]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def run(self, spawn: Spawn) -> subprocess.Popen[bytes]:
        """Call `spawn` on the thread; its result or its error."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve, name="process-spawner", daemon=True)
                self._thread.start()
        done: Future[subprocess.Popen[bytes]] = Future()
        self._work.put((spawn, done))
        return done.result()

    def _serve(self) -> None:
        while True:
            spawn, done = self._work.get()
            try:
                done.set_result(spawn())
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                done.set_exception(error)


class Spawn(Protocol):
    """Starts a child."""

    def __call__(self) -> subprocess.Popen[bytes]:
        """Start it."""


_spawner = _Spawner()
