"""Who writes a revised answer: the student on this machine, or a teacher behind an OpenAI-compatible endpoint.

Both take the same tasks and give back whole answers, in the order of the tasks. What an answer hangs on is its task
alone: the text, the seed, and what `parameters` names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agents.training.prompting import RevisionPrompt

Progress = Callable[[int, int], None]
"""Told how many answers are written, of how many."""


@dataclass(frozen=True, slots=True)
class WritingTask:
    """One answer to be written. `key` is unique among tasks handed over together; `seed` is the example's own."""

    key: str
    prompt: RevisionPrompt
    seed: bytes


class Writer(Protocol):
    """Writes answers."""

    @property
    def name(self) -> str:
        """The model that writes, as it is stored with every round."""
        ...

    @property
    def parameters(self) -> dict[str, Any]:
        """What an answer hangs on besides its task; stored with every round."""
        ...

    @property
    def slice_size(self) -> int:
        """As many tasks are worth handing over at a time."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens written since it was made."""
        ...

    def write(self, tasks: Sequence[WritingTask], on_progress: Progress) -> list[str]:
        """The answers, an opening included; an empty one where the writer would not write."""
        ...
