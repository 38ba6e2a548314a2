"""The log, its head, and triggers that keep the log append-only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_GENESIS = "0" * 64


def upgrade() -> None:
    """Create the tables, the head of an empty chain, and the triggers."""
    op.create_table(
        "audit_entries",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("entry_id", sa.String(256), nullable=False, unique=True),
        sa.Column("event_type", sa.String(256), nullable=False),
        sa.Column("model_id", sa.String(256)),
        sa.Column("cycle_id", sa.String(256)),
        sa.Column("domain", sa.String(256)),
        sa.Column("timestamp", sa.String(32), nullable=False),
        sa.Column("recorded_at", sa.String(32), nullable=False),
        sa.Column("violation_count", sa.Integer, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("content_digest", sa.String(64), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False, unique=True),
        sa.Column("digest", sa.String(64), nullable=False),
    )
    for column in ("event_type", "model_id", "cycle_id", "domain"):
        op.create_index(f"ix_audit_entries_{column}", "audit_entries", [column, "seq"])
    op.create_index("ix_audit_entries_timestamp", "audit_entries", ["timestamp"])
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
    )
    op.bulk_insert(head, [{"id": 1, "seq": 0, "digest": _GENESIS}])
    _refuse_changes()


def _refuse_changes() -> None:
    """A mistake cannot rewrite the log; malice that drops the triggers is what the chain is for."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION audit_entries_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'audit entries are append-only'; END $$",
        )
        op.execute(
            "CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_entries_append_only()",
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_entries_no_{change.lower()} BEFORE {change} ON audit_entries "
            "BEGIN SELECT RAISE(ABORT, 'audit entries are append-only'); END",
        )


def downgrade() -> None:
    """Refused: going back would destroy the log, which must be kept for its retention period."""
    msg = "the audit log is never dropped by a migration; remove its database by hand once its retention has passed"
    raise RuntimeError(msg)
