"""Hears what is logged while cases are run."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class Ear(logging.Handler):
    """Hears what is logged: a secret anywhere, or an exception that nobody handled, is a finding."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: list[str] = []
        self.faults: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            trace = "".join(traceback.format_exception(*record.exc_info))
            text += trace
            if record.levelno >= logging.ERROR:
                self.faults.append(trace[-2500:])
        self.said.append(text[:100_000])

    def clear(self) -> None:
        """Forget what was heard."""
        self.said.clear()
        self.faults.clear()


@contextmanager
def listening() -> Iterator[Ear]:
    """Hear all loggers while the block runs."""
    ear, root = Ear(), logging.getLogger()
    before = root.level
    root.addHandler(ear)
    root.setLevel(logging.INFO)
    try:
        yield ear
    finally:
        root.removeHandler(ear)
        root.setLevel(before)
