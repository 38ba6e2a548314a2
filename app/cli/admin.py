"""Commands about the installation: configuration, topics, database."""

from __future__ import annotations

import asyncio

import typer

from app.cli.output import AsJson, emit
from app.kafka import ensure_topics
from app.settings import load_settings
from app.settings.masking import masked
from app.topics import REGISTRY


def add(cli: typer.Typer) -> None:
    """Add the commands."""
    config = typer.Typer(no_args_is_help=True, help="The configuration.")
    config.command("check")(check)
    cli.add_typer(config, name="config")
    topics = typer.Typer(no_args_is_help=True, help="Kafka topics.")
    topics.command("ls")(list_topics)
    topics.command("create")(create_topics)
    cli.add_typer(topics, name="topics")
    database = typer.Typer(no_args_is_help=True, help="The SQL store.")
    database.command("migrate")(migrate)
    cli.add_typer(database, name="db")


def check(as_json: AsJson = False) -> None:
    """Print the effective configuration, secrets masked; exit 2 where it cannot be."""
    emit(masked(load_settings()), as_json)


def list_topics(as_json: AsJson = False) -> None:
    """The topic registry."""
    emit(
        [
            {
                "topic": spec.name,
                "producers": ", ".join(spec.producers),
                "consumers": ", ".join(spec.consumers),
                "key": spec.key,
                "value": spec.value,
                "retention_days": spec.retention_ms // (24 * 3600 * 1000),
            }
            for spec in REGISTRY
        ],
        as_json,
    )


def create_topics(as_json: AsJson = False) -> None:
    """Create the registry's topics that the broker has not."""
    emit({"created": asyncio.run(ensure_topics(load_settings()))}, as_json)


def migrate() -> None:
    """Bring the store's schema up to date."""
    from app.wiring import open_database

    open_database(load_settings())
    typer.echo("the store is up to date")
