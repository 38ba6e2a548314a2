"""One directory a run: logs, process records and data of everything the run started, held by a lock.

    ROOT/.lock          held for a moment while runs are made and dead ones are cleaned up
    ROOT/ID/lock        held as long as the run lives; the kernel frees it when the run's process ends, however it ends
    ROOT/ID/logs/       one log a child
    ROOT/ID/pids/       one record a child
    ROOT/ID/data/       what services keep on disk
    ROOT/ID/scratch     paths of temporary folders outside, removed with the run

Making a run first ends whatever the children of dead runs left, so starting again after `kill -9` works.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

from app.embedded.errors import RunInUse
from app.embedded.leftovers import ProcessRecord, end_leftovers

_DRAWN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
_VALID_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SCRATCH_PREFIX = "flywheel-"


class RunDirectory:
    """A run's directory, locked for as long as this object lives. Make one with `create`."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self.logs = path / "logs"
        self.pids = path / "pids"
        self.data = path / "data"
        self.token = secrets.token_hex(16)
        self._lock = lock
        for folder in (self.logs, self.pids, self.data):
            folder.mkdir(mode=0o700, exist_ok=True)

    @classmethod
    def create(cls, root: Path, run_id: str | None = None, keep: int = 5) -> RunDirectory:
        """Clean up after dead runs below `root`, then make and lock a run.

        Args:
            root: the folder of all runs, made where it is missing.
            run_id: a name to come back to (its data stay); without it one is drawn.
            keep: how many dead runs with drawn names stay for their logs.

        Raises:
            RunInUse: a live process holds `run_id`.
            ValueError: `run_id` cannot be a folder's name.
        """
        if run_id is not None and not _VALID_ID.fullmatch(run_id):
            raise ValueError(f"run id {run_id!r}: use 1 to 64 letters, digits, dots, dashes and underscores")
        root = root.absolute()
        root.mkdir(parents=True, exist_ok=True)
        with _registry(root):
            _clean(root, keep)
            path = root / (run_id or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}")
            path.mkdir(mode=0o700, exist_ok=True)
            lock = _try_lock(path)
            if lock is None:
                raise RunInUse(path, _holder(path))
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            return cls(path, lock)

    def scratch(self, name: str) -> Path:
        """A new folder in the system's temporary directory, removed with the run (or by the next one).

        For what cannot live in the run directory: paths that must be short or that another user must reach.
        """
        folder = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH_PREFIX}{name}-"))
        with (self.path / "scratch").open("a") as listing:
            listing.write(f"{folder}\n")
        return folder

    def close(self) -> None:
        """Remove scratch folders and free the lock; logs and data stay. Stop the children first."""
        if not self._lock.closed:
            _remove_scratch(self.path)
            self._lock.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _registry(root: Path) -> Iterator[None]:
    """Hold the lock of the folder of runs, so that nobody takes a run half made for a dead one."""
    with (root / ".lock").open("w") as registry:
        fcntl.flock(registry, fcntl.LOCK_EX)
        yield


def _clean(root: Path, keep: int) -> None:
    dead: list[Path] = []
    for path in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        lock = _try_lock(path)
        if lock is None:
            continue
        with lock:
            for file in sorted((path / "pids").glob("*.json")):
                record = ProcessRecord.read(file)
                if record is not None:
                    end_leftovers(record)
                file.unlink(missing_ok=True)
            _remove_scratch(path)
        if _DRAWN_ID.fullmatch(path.name):
            dead.append(path)
    for path in dead[: max(0, len(dead) - keep)]:
        shutil.rmtree(path, ignore_errors=True)


def _try_lock(path: Path) -> IO[str] | None:
    """The run's lock file, locked, or None when a live process holds it."""
    file = (path / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _holder(path: Path) -> str:
    return (path / "lock").read_text().strip()


def _remove_scratch(path: Path) -> None:
    """Remove the listed folders that bear this module's mark."""
    listing = path / "scratch"
    if not listing.exists():
        return
    for folder in map(Path, listing.read_text().splitlines()):
        if folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith(_SCRATCH_PREFIX):
            shutil.rmtree(folder, ignore_errors=True)
    listing.unlink()
