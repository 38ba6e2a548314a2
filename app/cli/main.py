"""`flywheel`: one command, a module of subcommands each."""

from __future__ import annotations

import sys

import typer

from app import __version__
from app.cli import (
    access,
    admin,
    audit,
    backfill,
    constitution,
    cycles,
    dlq,
    events,
    examples,
    models,
    policy,
    privacy,
    routing,
    run,
    users,
)
from app.cli.output import BriefGroup, complain
from app.connections import AccessRefused
from app.kafka import TopicsNotReady
from app.settings import SettingsError
from app.store.database import DatabaseUnavailable

cli = typer.Typer(
    cls=BriefGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
run.add(cli)
admin.add(cli)
cycles.add(cli)
events.add(cli)
routing.add(cli)
users.add(cli)
access.add(cli)
backfill.add(cli)
dlq.add(cli)
audit.add(cli)
constitution.add(cli)
examples.add(cli)
models.add(cli)
policy.add(cli)
privacy.add(cli)


@cli.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Entry point. A wrong setting is one line on standard error and exit status 2, a service that is away 1."""
    try:
        cli()
    except SettingsError as error:  # bounded where it is made
        typer.echo(f"flywheel: {error}", err=True)
        sys.exit(2)
    except (AccessRefused, DatabaseUnavailable, TopicsNotReady) as error:
        complain(str(error))
        sys.exit(1)
