"""Where a contender's time goes, between its first and last acknowledgement: two ways to look.

`sample` interrupts the process every few milliseconds of its CPU time and notes where it stands: nearly free, and C
code (orjson, zlib, protobuf) counts for the line that called it. `calls` is cProfile: exact counts, but small functions
look dearer than they are.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import signal
from collections import Counter
from enum import StrEnum
from types import FrameType
from typing import Protocol

_TOP = 40
_INTERVAL_S = 0.001
"""Asked for; most kernels look at CPU time only 250 times a second."""


class ProfileKind(StrEnum):
    """How to look."""

    SAMPLE = "sample"
    CALLS = "calls"


class Profiler(Protocol):
    """Looks between `start` and `stop`."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> str:
        """End, and return a printable report of the top by own time."""


def profiler(kind: ProfileKind) -> Profiler:
    """Make one of the kind."""
    return SamplingProfiler() if kind is ProfileKind.SAMPLE else CallProfiler()


class SamplingProfiler:
    """Samples the main thread, which runs the event loop."""

    def __init__(self) -> None:
        self._functions: Counter[str] = Counter()
        self._lines: Counter[str] = Counter()
        self._within: Counter[str] = Counter()

    def start(self) -> None:
        """Begin; takes the process's SIGPROF."""
        signal.signal(signal.SIGPROF, self._sample)
        # A system call that is interrupted goes on by itself.
        signal.siginterrupt(signal.SIGPROF, False)
        signal.setitimer(signal.ITIMER_PROF, _INTERVAL_S, _INTERVAL_S)

    def stop(self) -> str:
        """End, and return functions and lines by own time, and functions by time within."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        total = sum(self._functions.values())
        parts = (
            ("functions by own time (C code counts for its caller)", self._functions),
            ("lines by own time", self._lines),
            ("functions by time within", self._within),
        )
        return f"{total} samples\n" + "\n".join(_ranking(title, counts, total) for title, counts in parts)

    def _sample(self, _signal: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        name = _function(frame)
        self._functions[name] += 1
        self._lines[f"{name}  line {frame.f_lineno}"] += 1
        seen = set()
        outer: FrameType | None = frame
        while outer is not None:
            seen.add(_function(outer))
            outer = outer.f_back
        self._within.update(seen)


class CallProfiler:
    """cProfile over the main thread."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile()

    def start(self) -> None:
        """Begin."""
        self._profile.enable()

    def stop(self) -> str:
        """End, and return functions by own time."""
        self._profile.disable()
        text = io.StringIO()
        pstats.Stats(self._profile, stream=text).sort_stats("tottime").print_stats(_TOP)
        return text.getvalue()


def _function(frame: FrameType) -> str:
    code = frame.f_code
    return f"{'/'.join(code.co_filename.split('/')[-3:])} {code.co_qualname}"


def _ranking(title: str, counts: Counter[str], total: int) -> str:
    rows = [f"  {count / total:6.1%}  {name}" for name, count in counts.most_common(_TOP)] if total else ["  nothing"]
    return "\n".join((f"\n{title}", *rows))
