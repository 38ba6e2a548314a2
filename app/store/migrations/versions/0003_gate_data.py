"""The gate's live data (permissions, GPU use, machines), and what became of refused outbox messages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "user_permissions",
        sa.Column("revision", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.String(length=32), nullable=False),
        sa.Column("entry_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_user_permissions")),
    )
    op.create_index("ix_user_permissions_name", "user_permissions", ["name", "revision"], unique=False)
    op.create_table(
        "gpu_usage",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("cycle_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("reporter", sa.String(length=200), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.Column("ended", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.cycle_id"], name=op.f("fk_gpu_usage_cycle_id")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_gpu_usage")),
    )
    op.create_index("ix_gpu_usage_seen", "gpu_usage", ["seen_at"], unique=False)
    op.create_table(
        "compute_reports",
        sa.Column("reporter", sa.String(length=200), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("memory_gb", sa.Float(), nullable=False),
        sa.Column("reported_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("reporter", name=op.f("pk_compute_reports")),
    )
    op.add_column("outbox", sa.Column("refusal", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("outbox", "refusal")
    op.drop_table("compute_reports")
    op.drop_index("ix_gpu_usage_seen", table_name="gpu_usage")
    op.drop_table("gpu_usage")
    op.drop_index("ix_user_permissions_name", table_name="user_permissions")
    op.drop_table("user_permissions")
