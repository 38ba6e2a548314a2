"""How far a backfill is, by name: a small JSON file that is replaced whole after every acknowledged batch."""

from __future__ import annotations

import fcntl
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from app.backfill.source import Range, Ranges
from app.store.database import utc_now

OUTCOMES = ("routed", "filtered", "duplicate", "sampled_out", "dead_lettered")
Snapshot = Mapping[str, Any]
"""What `agents.routing.counters.Counters.snapshot` returns."""

_COUNTED = ("in", *OUTCOMES, "redelivered", "id_conflict", "unclaimed")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ProgressRefused(RuntimeError):
    """The name cannot be used so: it is no name, is taken by another backfill, or another run has it."""


@dataclass
class Progress:
    """One backfill. `next` and `end` are offsets by partition; `counts` are the router's, over all runs of it."""

    name: str
    source: dict[str, Any]
    next: dict[int, int]
    end: dict[int, int | None]
    started_at: str
    messages: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    by_reason: Counter[str] = field(default_factory=Counter)
    finished_at: str | None = None

    @classmethod
    def begin(cls, name: str, source: dict[str, Any], ranges: Ranges) -> Progress:
        """A backfill that has read nothing yet."""
        starts = {number: part.next for number, part in ranges.items()}
        return cls(name, source, starts, {number: part.end for number, part in ranges.items()}, utc_now())

    @property
    def ranges(self) -> Ranges:
        """What is left to read."""
        return {number: Range(at, self.end[number]) for number, at in self.next.items()}

    def advance(self, messages: int, reached: Mapping[int, int], before: Snapshot, after: Snapshot) -> None:
        """Note a batch that is acknowledged, by what the router had counted before and after it."""
        self.messages += messages
        self.next.update(reached)
        self.counts.update({name: after[name] - before[name] for name in _COUNTED})
        self.by_reason.update(Counter(after["by_reason"]) - Counter(before["by_reason"]))

    def unaccounted(self) -> int:
        """How many records have no outcome; 0 unless the router is wrong."""
        return self.counts["in"] - sum(self.counts[name] for name in OUTCOMES)


class ProgressFile:
    """The file of one name. It is locked for as long as a run has it."""

    def __init__(self, folder: Path, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ProgressRefused(f"{name!r} is no name: use up to 100 letters, digits, dots, dashes and underscores")
        self.name = name
        self.path = folder / f"{name}.json"
        self._lock = folder / f"{name}.lock"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs of the name out; ends with the process, however that ends. Raises `ProgressRefused`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ProgressRefused(f"backfill {self.name} is running already: wait for it, or end it") from None
            yield

    def load(self, source: dict[str, Any]) -> Progress | None:
        """Where an earlier run of this name got to; None before the first.

        Raises `ProgressRefused` where that run was of another `source`.
        """
        try:
            found = orjson.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError as error:
            raise ProgressRefused(f"{self.path} is damaged ({error}): give another --name to begin anew") from None
        if found["source"] != source:
            was, asked = orjson.dumps(found["source"]).decode(), orjson.dumps(source).decode()
            raise ProgressRefused(
                f"backfill {self.name} is of {was}, not of {asked}: ask for the same, or give another --name"
            )
        numbered = {part: {int(number): at for number, at in found[part].items()} for part in ("next", "end")}
        counters = {part: Counter(found[part]) for part in ("counts", "by_reason")}
        return Progress(**{**found, **numbered, **counters})

    def save(self, progress: Progress) -> None:
        """Replace the file; when this returns it will survive a crash."""
        partial = self.path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(orjson.dumps(vars(progress), option=orjson.OPT_NON_STR_KEYS | orjson.OPT_INDENT_2))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)
