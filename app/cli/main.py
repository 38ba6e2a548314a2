"""`flywheel`: one command, a module of subcommands each."""

from __future__ import annotations

import sys

import typer

from app import __version__
from app.cli import admin, cycles, events, run
from app.settings import SettingsError

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
run.add(cli)
admin.add(cli)
cycles.add(cli)
events.add(cli)


@cli.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Entry point; a wrong setting is one line on standard error and exit status 2."""
    try:
        cli()
    except SettingsError as error:
        typer.echo(f"flywheel: {error}", err=True)
        sys.exit(2)
