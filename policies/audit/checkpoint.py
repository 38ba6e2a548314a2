"""The checkpoint file: signed heads, one a line, outside the database. Only ever appended to.

Each head holds the SHA-256 of the one before it, so the file is a chain too. What it cannot show by itself is that its
last lines were cut off: for that, keep a copy of it elsewhere.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from models.audit import SignedHead
from policies.audit.chain import GENESIS
from policies.audit.seal import HeadChain, KeyRing, head_line

_LOG = logging.getLogger(__name__)

_MOST_LINE_BYTES = 4096  # a signed head has some 420


class CheckpointReader:
    """The signed heads of a checkpoint file that can be trusted, in rising order of `seq`. Can be iterated once.

    It reads what was there when it was made. `fault` names the first line that cannot be trusted. A last line without
    its end was being written when something crashed, and counts as not written.
    """

    def __init__(self, path: Path, keys: KeyRing) -> None:
        self._path = path
        self._size = path.stat().st_size if path.exists() else None
        self._chain = HeadChain(keys, GENESIS)
        self._heads = self._read()

    @property
    def fault(self) -> str | None:
        """What is wrong with the file, as far as it was read."""
        return self._chain.fault

    def __iter__(self) -> Iterator[SignedHead]:
        return self._heads

    def drain(self) -> None:
        """Read what is left, for its faults."""
        for _ in self._heads:
            pass

    def _read(self) -> Iterator[SignedHead]:
        try:
            for number, line in enumerate(self._lines(), 1):
                head = _parse(line)
                if self._chain.trusts(head, f"line {number} of {self._path}") and head is not None:
                    yield head
        except OSError as error:
            self._chain.fail(f"the checkpoint file {self._path} cannot be read: {error.strerror}")
        if self._size is None:
            self._chain.fail(f"the checkpoint file {self._path} does not exist: restore it from a copy")
        elif self._chain.empty:
            self._chain.fail(f"the checkpoint file {self._path} holds no signed head: restore it from a copy")

    def _lines(self) -> Iterator[bytes]:
        if not self._size:
            return
        left = self._size
        with self._path.open("rb") as file:
            while left > 0:
                line = file.readline(min(left, _MOST_LINE_BYTES))
                left -= len(line)
                if not line or (left == 0 and not line.endswith(b"\n")):
                    return
                yield line


class CheckpointFile:
    """The file as its writer has it: locked, its last line whole. Make one with `open_checkpoint`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self.size = self._repaired()
        self.last_line = self._tail(self.size)[1]

    @property
    def last(self) -> SignedHead | None:
        """The last signed head. None where the file is empty, or where its last line is no head."""
        return _parse(self.last_line)

    def append(self, head: SignedHead) -> None:
        """Add a head; it is durable when this returns."""
        line = f"{head_line(head)}\n".encode()
        written = os.write(self._descriptor, line)
        if written != len(line):
            os.ftruncate(self._descriptor, self.size)
            raise OSError(f"only {written} of {len(line)} bytes went into {self._path}: is the disk full?")
        os.fsync(self._descriptor)
        self.size += len(line)
        self.last_line = line

    def holds(self, line: bytes, end: int) -> bool:
        """Whether the line that ends at this offset is still there."""
        return os.pread(self._descriptor, len(line), max(0, end - len(line))) == line

    def _repaired(self) -> int:
        """The file's size, once a line that a crash left without its end is cut off."""
        size = os.fstat(self._descriptor).st_size
        before, line = self._tail(size)
        # What is longer than any head was not written by this program, and is left for whoever looks into it.
        if line.endswith(b"\n") or not 0 < len(line) < _MOST_LINE_BYTES:
            return size
        os.ftruncate(self._descriptor, before)
        os.fsync(self._descriptor)
        _LOG.warning("%s ended within a line, as after a crash; these %d bytes were cut off", self._path, len(line))
        return before

    def _tail(self, size: int) -> tuple[int, bytes]:
        """Where the last line begins, and the line (its last bytes, where it is longer than any head)."""
        start = max(0, size - _MOST_LINE_BYTES)
        tail = os.pread(self._descriptor, size - start, start)
        begin = tail.rfind(b"\n", 0, -1) + 1
        return start + begin, tail[begin:]


@contextmanager
def open_checkpoint(path: Path) -> Iterator[CheckpointFile]:
    """The checkpoint file, made where it is missing, for one writer at a time.

    Raises BlockingIOError where another process has it, and other OSErrors.
    """
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if new:
            _sync_folder(path.parent)
        yield CheckpointFile(path, descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """A new file's name is durable only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse(line: bytes) -> SignedHead | None:
    try:
        return SignedHead.model_validate_json(line)
    except ValidationError:
        return None
