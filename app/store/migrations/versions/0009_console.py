"""Who may use the web, adherence over time, what workers report, and indices for pages over a large store."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables and indices."""
    op.create_table(
        "access_grants",
        sa.Column("revision", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("value", sa.Text),
        sa.Column("changed_by", sa.Text, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("changed_at", sa.String(32), nullable=False),
        sa.Column("entry_id", sa.String(64), nullable=False),
    )
    op.create_index("ix_access_grants_name", "access_grants", ["name", "revision"])
    op.create_table(
        "adherence_history",
        sa.Column("model_id", sa.String(200), primary_key=True),
        sa.Column("domain", sa.String(200), primary_key=True),
        sa.Column("span", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("minute", sa.String(16), primary_key=True),
        sa.Column("mean", sa.Float, nullable=False),
        sa.Column("evaluations", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_adherence_history_minute", "adherence_history", ["span", "minute"])
    op.create_table(
        "worker_reports",
        sa.Column("worker", sa.String(200), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
        sa.Column("reported_at", sa.Float, nullable=False),
    )
    op.create_index("ix_examples_queue", "examples", ["status", "priority", "created_at"])
    op.create_index(
        "ix_examples_waiting",
        "examples",
        ["status", "model_id", "domain", "subject_token", "created_at", "example_id"],
    )
    op.create_index("ix_cycles_created", "cycles", ["created_at"])
    op.create_index("ix_privacy_ledger_cycle", "privacy_ledger", ["cycle_id", "cohort"])
    op.create_index(
        "ix_outbox_refused",
        "outbox",
        ["seq"],
        sqlite_where=sa.text("refusal IS NOT NULL"),
        postgresql_where=sa.text("refusal IS NOT NULL"),
    )


def downgrade() -> None:
    """Drop them; whoever had a token has none any more."""
    op.drop_index("ix_outbox_refused", "outbox")
    op.drop_index("ix_privacy_ledger_cycle", "privacy_ledger")
    op.drop_index("ix_cycles_created", "cycles")
    op.drop_index("ix_examples_waiting", "examples")
    op.drop_index("ix_examples_queue", "examples")
    op.drop_table("worker_reports")
    op.drop_table("adherence_history")
    op.drop_table("access_grants")
