"""Pruning: what was pruned is written down first, and only what stands there may be deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table of prunings; let the triggers permit deleting entries up to the highest one there."""
    op.create_table(
        "audit_prunings",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("head", sa.Text, nullable=False),
        sa.Column("entries", sa.BigInteger, nullable=False),
        sa.Column("entry_id", sa.String(256), nullable=False),
        sa.Column("pruned_at", sa.String(32), nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        _postgresql()
    else:
        _sqlite()


def _postgresql() -> None:
    op.execute("DROP TRIGGER audit_entries_append_only ON audit_entries")
    op.execute(
        "CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR TRUNCATE ON audit_entries "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_entries_append_only()",
    )
    op.execute(
        "CREATE FUNCTION audit_entries_delete_pruned() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF OLD.seq > (SELECT coalesce(max(seq), 0) FROM audit_prunings) THEN "
        "RAISE EXCEPTION 'audit entries are append-only'; END IF; RETURN OLD; END $$",
    )
    op.execute(
        "CREATE TRIGGER audit_entries_delete_pruned BEFORE DELETE ON audit_entries "
        "FOR EACH ROW EXECUTE FUNCTION audit_entries_delete_pruned()",
    )
    op.execute(
        "CREATE FUNCTION audit_prunings_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'audit prunings are append-only'; END $$",
    )
    op.execute(
        "CREATE TRIGGER audit_prunings_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_prunings "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_prunings_append_only()",
    )
    op.execute(
        "CREATE FUNCTION audit_prunings_grow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.seq <= (SELECT coalesce(max(seq), 0) FROM audit_prunings) OR NOT EXISTS "
        "(SELECT 1 FROM audit_entries WHERE seq = NEW.seq AND digest = NEW.digest) THEN "
        "RAISE EXCEPTION 'an audit pruning ends at an entry of the log, after the pruning before it'; "
        "END IF; RETURN NEW; END $$",
    )
    op.execute(
        "CREATE TRIGGER audit_prunings_grow BEFORE INSERT ON audit_prunings "
        "FOR EACH ROW EXECUTE FUNCTION audit_prunings_grow()",
    )


def _sqlite() -> None:
    op.execute("DROP TRIGGER audit_entries_no_delete")
    op.execute(
        "CREATE TRIGGER audit_entries_no_delete BEFORE DELETE ON audit_entries "
        "WHEN OLD.seq > (SELECT coalesce(max(seq), 0) FROM audit_prunings) "
        "BEGIN SELECT RAISE(ABORT, 'audit entries are append-only'); END",
    )
    # INSERT OR REPLACE removes the row in its way without asking the trigger on DELETE.
    op.execute(
        "CREATE TRIGGER audit_entries_no_replace BEFORE INSERT ON audit_entries "
        "WHEN EXISTS (SELECT 1 FROM audit_entries WHERE seq = NEW.seq) "
        "OR EXISTS (SELECT 1 FROM audit_entries WHERE entry_id = NEW.entry_id) "
        "OR EXISTS (SELECT 1 FROM audit_entries WHERE previous = NEW.previous) "
        "BEGIN SELECT RAISE(ABORT, 'audit entries are append-only'); END",
    )
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_prunings_no_{change.lower()} BEFORE {change} ON audit_prunings "
            "BEGIN SELECT RAISE(ABORT, 'audit prunings are append-only'); END",
        )
    op.execute(
        "CREATE TRIGGER audit_prunings_grow BEFORE INSERT ON audit_prunings "
        "WHEN NEW.seq <= (SELECT coalesce(max(seq), 0) FROM audit_prunings) OR NOT EXISTS "
        "(SELECT 1 FROM audit_entries WHERE seq = NEW.seq AND digest = NEW.digest) "
        "BEGIN SELECT RAISE(ABORT, 'an audit pruning ends at an entry of the log, after the pruning before it'); END",
    )


def downgrade() -> None:
    """Refused, as by the first revision: what was pruned would no longer be known."""
    msg = "the audit log's schema is never taken back; restore the database from a backup instead"
    raise RuntimeError(msg)
