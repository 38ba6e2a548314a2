"""What the embedded stack can fail with.

EmbeddedError
├── ProgramMissing       a program or wheel is not installed; says how to get it
├── RunInUse             another live process holds the run directory
└── ProcessError         a child did not do what it should; carries the end of its log
    ├── ProcessExited    it ended when it should have been running
    │   └── PortTaken    because another program took its port first (worth another try)
    └── NotReady         it runs, but did not become ready in time
"""

from __future__ import annotations

from pathlib import Path


class EmbeddedError(RuntimeError):
    """The embedded stack cannot be provided."""


class ProgramMissing(EmbeddedError):
    """A program or wheel that a service needs is not installed.

    Args:
        what: what is missing and what needs it, as a clause.
        command: the shell command that provides it.
    """

    def __init__(self, what: str, command: str) -> None:
        super().__init__(f"{what}. Provide it with: {command}")
        self.what = what
        self.command = command


class RunInUse(EmbeddedError):
    """Another live process holds the run directory `path`."""

    def __init__(self, path: Path, pid: str) -> None:
        super().__init__(f"{path} is in use by process {pid or 'unknown'}. Stop that process, or choose another run id")
        self.path = path


class ProcessError(EmbeddedError):
    """A child process failed; the message ends with the last lines of its log."""

    def __init__(self, name: str, what: str, log_path: Path, tail: str) -> None:
        lines = "\n".join(f"  | {line}" for line in tail.splitlines()) or "  | (the log is empty)"
        super().__init__(f"{name} {what}. The end of {log_path}:\n{lines}")
        self.name = name
        self.log_path = log_path
        self.tail = tail


class ProcessExited(ProcessError):
    """A child process ended when it should have been running."""


class PortTaken(ProcessExited):
    """A child process ended because another program had its port."""


class NotReady(ProcessError):
    """A child process runs but did not become ready in time."""
