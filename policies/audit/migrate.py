"""Brings the audit database to the newest schema. Alembic, configured in code: works from an installed package."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, text

from policies.audit.engine import IMMEDIATE, make_engine

SCRIPT_LOCATION = "policies.audit:migrations"
VERSION_TABLE = "audit_alembic_version"

# Any fixed number: services that start together take turns by it on PostgreSQL.
_ADVISORY_LOCK = 0x61756469


def migrate(database_url: str) -> None:
    """Upgrade to the newest revision; safe when several services start at once. Raises SQLAlchemy's errors."""
    engine = make_engine(database_url)
    try:
        migrate_engine(engine)
    finally:
        engine.dispose()


def migrate_engine(engine: Engine) -> None:
    """As `migrate`, on an engine that is there already."""
    with engine.connect().execution_options(**IMMEDIATE) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        command.upgrade(alembic_config(connection), "head")


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration for an open connection; the caller's transaction is used."""
    config = Config()
    config.set_main_option("script_location", SCRIPT_LOCATION)
    config.attributes["connection"] = connection
    return config
