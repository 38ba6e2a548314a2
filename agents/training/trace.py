"""Following a cycle through its stages. What makes spans stands in `app.telemetry`; here is what the runner asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from models.cycle import Cycle


class StageTrace(Protocol):
    """One run of a stage."""

    def moved(self, following: Cycle) -> None:
        """The cycle went on; without this, or `failed`, it waits."""

    def failed(self, error: Exception) -> None:
        """The stage did not get to its end."""


class CycleTrace(Protocol):
    """The trace of cycles."""

    def stage(self, cycle: Cycle) -> AbstractContextManager[StageTrace]:
        """Surrounds a stage's work. Whatever it raises passes through."""

    def ended(self, cycle: Cycle) -> None:
        """The cycle is at its end. May read the store; never raises."""


class Untraced:
    """No spans."""

    @contextmanager
    def stage(self, cycle: Cycle) -> Iterator[StageTrace]:  # noqa: ARG002
        """Nothing around the work."""
        yield self

    def moved(self, following: Cycle) -> None:
        """Nothing to note."""

    def failed(self, error: Exception) -> None:
        """Nothing to note."""

    def ended(self, cycle: Cycle) -> None:
        """Nothing to tell."""
