"""A server as one child process: what starting, stopping and killing it have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from app.embedded.ports import with_retry
from app.embedded.process import ManagedProcess


class Server(ABC):
    """A server that is made when it is first started, and is started again where it was."""

    def __init__(self) -> None:
        self._process: ManagedProcess | None = None

    @property
    def process(self) -> ManagedProcess | None:
        """The child process once it was started."""
        return self._process

    def start(self) -> None:
        """Start it and wait until it serves; started again, it has the address that it had.

        Raises:
            ProgramMissing: the machine has not got what it runs on.
            EmbeddedError: it could not be prepared.
            ProcessError: it did not start.
        """
        if self._process is None:
            self._process = with_retry(self._start_anew)
        else:
            self._process.start()

    def stop(self) -> None:
        """Stop it in order."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """End it by SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()

    def check(self) -> None:
        """Raise `ProcessExited` when it ended by itself."""
        if self._process is not None:
            self._process.check()

    @abstractmethod
    def _start_anew(self) -> ManagedProcess:
        """Prepare it on ports of its own and start it; called again with other ports where one was taken."""
