"""What a contender costs, measured inside its own process; the same code for all of them."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import orjson


class Reading(NamedTuple):
    """One contender's figures, from the acknowledgement of its first batch to that of its last record.

    Args:
        records: input records between the two; the first batch's are not among them.
        seconds: of the clock.
        cpu_seconds: of the process, user and system, all its threads.
        peak_mb: largest resident set since the process started, in MiB.
        batches: acknowledgements between the two.
        first_at: when the first batch was acknowledged, in seconds since the Unix epoch.
    """

    records: int
    seconds: float
    cpu_seconds: float
    peak_mb: float
    batches: int
    first_at: float

    @property
    def records_per_s(self) -> float:
        """Input records a second."""
        return self.records / self.seconds if self.seconds else 0.0

    @property
    def cpu_us_per_record(self) -> float:
        """CPU microseconds an input record."""
        return self.cpu_seconds / self.records * 1e6 if self.records else 0.0

    @classmethod
    def read(cls, path: Path) -> Reading:
        """Read what `Meter` wrote."""
        return cls(**orjson.loads(path.read_bytes()))


class Meter:
    """Counts acknowledged input records and writes a `Reading` once all of them are.

    Args:
        expected: how many input records there are.
        path: where the reading goes.
        on_start: called at the first acknowledgement.
        on_end: called once the reading is written.
    """

    def __init__(
        self,
        expected: int,
        path: Path,
        on_start: Callable[[], None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.expected = expected
        self.seen = 0
        self._path = path
        self._on_start = on_start
        self._on_end = on_end
        self._first = 0
        self._batches = 0
        self._began = (0.0, 0.0, 0.0)

    @property
    def is_complete(self) -> bool:
        """Whether all expected records are acknowledged."""
        return self.seen >= self.expected

    def is_last(self, records: int) -> bool:
        """Tell whether so many more complete the input."""
        return self.seen + records >= self.expected

    def acknowledged(self, records: int) -> None:
        """Take note that all that came of `records` more input records is acknowledged (or they were dropped)."""
        complete = self.is_complete
        self.seen += records
        self._batches += 1
        if self._first == 0:
            self._first = self.seen
            self._on_start()
            self._began = (time.time(), time.perf_counter(), _cpu_seconds())
        if self.is_complete and not complete:
            self._finish()

    def _finish(self) -> None:
        seconds, cpu = time.perf_counter(), _cpu_seconds()
        first_at, began, began_cpu = self._began
        reading = Reading(
            records=self.seen - self._first,
            seconds=seconds - began,
            cpu_seconds=cpu - began_cpu,
            peak_mb=peak_mb(),
            batches=self._batches - 1,
            first_at=first_at,
        )
        whole = self._path.with_suffix(".part")
        whole.write_bytes(orjson.dumps(reading._asdict()))
        whole.replace(self._path)
        self._on_end()


def process_cpu_s(pid: int) -> float:
    """User and system time of another process so far, all its threads, in seconds; raises `OSError` if it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb() -> float:
    """Return this process's largest resident set so far, in MiB.

    From the memory map's own mark: `ru_maxrss` survives exec, so it would show the parent that a process was forked
    from where that was the larger one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/{os.getpid()}/status names no VmHWM: the benchmark needs Linux")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
