"""A file by which a pod tells the worker how its job goes: the lines of JSON that a child writes to its pipe.

The two run on different machines and see the file through a shared volume. The writer opens the file for each line and
closes it, the reader opens it for each look: network file systems show what was closed to whoever opens afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

MAILBOX = ".jsonl"


def mailbox(specification: Path) -> Path:
    """Where the pod that was given this specification tells how it goes."""
    return specification.with_suffix(MAILBOX)


class Outbox:
    """The pod's end."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, message: dict[str, Any]) -> None:
        """Append a message, and have the disk hold it; where that fails, nothing of it is left."""
        left = memoryview(json.dumps(message).encode() + b"\n")
        with self._path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                # Half a line would swallow the next message.
                with contextlib.suppress(OSError):
                    os.truncate(self._path, before)
                raise


class Inbox:
    """The worker's end: what was written since the last look. A worker that has taken over reads from the start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever read."""
        return self._offset == 0

    def read(self) -> list[dict[str, Any]]:
        """The new messages, in order. Half a line is left until it is whole; what is no message is passed over."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [message for line in whole.splitlines() if (message := _message(line)) is not None]


def _message(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
