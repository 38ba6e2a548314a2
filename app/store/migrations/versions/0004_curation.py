"""Adherence as curation estimates it, the stop switch, and indexes by which text is forgotten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_examples_subject", "examples", ["subject_token"], unique=False)
    op.create_index("ix_examples_created", "examples", ["created_at"], unique=False)
    op.create_table(
        "switches",
        sa.Column("revision", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.String(length=32), nullable=False),
        sa.Column("entry_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_switches")),
    )
    op.create_index("ix_switches_name", "switches", ["name", "revision"], unique=False)
    op.create_table(
        "adherence",
        sa.Column("model_id", sa.String(length=200), nullable=False),
        sa.Column("domain", sa.String(length=200), nullable=False),
        sa.Column("adherent", sa.Float(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("evaluations", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("model_id", "domain", name=op.f("pk_adherence")),
    )
    op.create_table(
        "adherence_positions",
        sa.Column("topic", sa.String(length=249), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("topic", "partition", name=op.f("pk_adherence_positions")),
    )


def downgrade() -> None:
    op.drop_table("adherence_positions")
    op.drop_table("adherence")
    op.drop_index("ix_switches_name", table_name="switches")
    op.drop_table("switches")
    op.drop_index("ix_examples_created", table_name="examples")
    op.drop_index("ix_examples_subject", table_name="examples")
