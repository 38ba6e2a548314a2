"""Progress, told on standard error while the benchmark runs; its results go to standard output."""

from __future__ import annotations

from rich.console import Console

_console = Console(stderr=True, highlight=False, soft_wrap=True)


def tell(text: str) -> None:
    """Print a line of progress."""
    _console.print(text, markup=False)
