"""The clock of workers and engines, which may be set forth and back: libfaketime's, where the machine has it."""

from __future__ import annotations

from pathlib import Path

from chaos.at_start import AT_START

_LIBRARY = "*/faketime/libfaketimeMT.so.1"


class Clocks:
    """One clock for all processes started with `environment`. Monotonic clocks, those of Redis, PostgreSQL and Kafka,
    and the test's own go on as ever.

    Args:
        file: says how far the clock is set.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._library = next(Path("/usr/lib").glob(_LIBRARY), None)
        self.set(0)

    @property
    def own(self) -> bool:
        """Whether it can be set."""
        return self._library is not None

    def environment(self) -> dict[str, str]:
        """The variables of a process that goes by it."""
        return {
            **AT_START,
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_RESET": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: float) -> None:
        """Set it so far ahead of the true time, or back; within a second all processes see it."""
        partial = self._file.with_suffix(".partial")
        partial.write_text(f"{seconds:+.0f}s\n")
        partial.replace(self._file)
