"""Progress on the terminal: a line a stage, with a bar where the stage can say how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Stages:
    """Shows stages and measures them. On a pipe there are no bars, only a line when a stage ends."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(file=sys.stderr, quiet=quiet)
        self.seconds: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("{task.description:28}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextmanager
    def stage(self, name: str, description: str, total: int = 1) -> Iterator[StageBar]:
        """A stage from here to the end of the block; `seconds[name]` holds how long it took."""
        started = time.monotonic()
        task = self._progress.add_task(description, total=total, note="")
        bar = StageBar(self._progress, task)
        yield bar
        self.seconds[name] = round(time.monotonic() - started, 2)
        bar.finish()
        if not self.console.is_terminal:
            self.console.print(f"{description}: {self.seconds[name]:.1f} s {bar.note}".rstrip())


class StageBar:
    """One stage's bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self.note = ""

    def update(self, done: int, total: int, note: str | None = None) -> None:
        """Show how far it is."""
        self.note = self.note if note is None else note
        self._progress.update(self._task, completed=done, total=max(total, 1), note=self.note)

    def finish(self) -> None:
        """Fill the bar."""
        total = self._progress.tasks[self._task].total or 1
        self._progress.update(self._task, completed=total, note=self.note)
