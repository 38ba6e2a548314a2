"""How commands report: a table for people, `--json` for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from typer.core import TyperGroup

from policies.wording import in_few_words

_UsageError: Any = typer.BadParameter.__mro__[1]
"""What is raised for arguments that cannot be used; typer has no name of its own for it."""
_WHOLE = 40
"""A first column that is wider is folded as the others are."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def emit(rows: Sequence[Mapping[str, Any]] | Mapping[str, Any], as_json: bool) -> None:
    """Print one mapping or a list of them."""
    if as_json:
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2, default=str).decode())
        return
    console = Console()
    if isinstance(rows, Mapping):
        table = Table(show_header=False)
        for name, value in rows.items():
            table.add_row(name, _shown(value))
    else:
        if not rows:
            console.print("nothing to show")
            return
        shown = [[_shown(value) for value in row.values()] for row in rows]
        table = Table(*[Column(name, overflow="fold") for name in rows[0]])  # nothing is cut off
        # What names a row stays whole, so that it can be copied into the next command.
        table.columns[0].no_wrap = max(len(row[0]) for row in shown) <= _WHOLE
        for row in shown:
            table.add_row(*row)
    console.print(table)


def complain(message: str) -> None:
    """A message on standard error, in few words: it may quote what somebody wrote."""
    typer.echo(f"flywheel: {in_few_words(message)}", err=True)


class BriefGroup(TyperGroup):
    """Commands that say what is wrong with their arguments, and repeat none at length."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The group's own arguments."""
        with _in_few_words():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """The commands below read theirs here."""
        with _in_few_words():
            return super().invoke(ctx)


@contextmanager
def _in_few_words() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        error.message = in_few_words(error.message)
        raise


def printable(text: str) -> str:
    """The text with what is no printable character, but a line's end or a tab, escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _shown(value: Any) -> str:
    # Names come from events: brackets in them are text, not the terminal's markup, and no terminal obeys them.
    if isinstance(value, Mapping | list | tuple):
        return escape(printable(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode()))
    return "" if value is None else escape(printable(str(value)))
