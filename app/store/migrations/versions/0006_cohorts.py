"""Cohorts of a data domain."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cohorts",
        sa.Column("domain", sa.String(length=200), nullable=False),
        sa.Column("cohort", sa.Integer(), nullable=False),
        sa.Column("opened_by", sa.Text(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("domain", "cohort", name=op.f("pk_cohorts")),
    )


def downgrade() -> None:
    op.drop_table("cohorts")
