"""Run by Alembic. The connection comes from `policies.audit.migrate`, which also owns the transaction."""

from __future__ import annotations

from alembic import context

from policies.audit.migrate import VERSION_TABLE
from policies.audit.tables import metadata


def _run() -> None:
    connection = context.config.attributes.get("connection")
    if connection is None:
        msg = "the audit database is migrated by policies.audit.migrate.migrate(url), not by Alembic's own command"
        raise RuntimeError(msg)
    # One transaction for all of it, on SQLite too: a half-made schema is never seen.
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


_run()
