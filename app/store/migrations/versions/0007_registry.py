"""The model registry: who deployed what by which decision, the watch over champions, alerts, and the mirror's state."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model_versions", sa.Column("rolled_back_at", sa.String(length=32), nullable=True))
    op.add_column("model_versions", sa.Column("rolled_back_reason", sa.Text(), nullable=True))
    op.add_column("deployments", sa.Column("previous", sa.Integer(), nullable=True))
    op.add_column("deployments", sa.Column("kind", sa.String(length=16), nullable=False, server_default="promotion"))
    op.add_column("deployments", sa.Column("deployed_by", sa.Text(), nullable=False, server_default=""))
    op.add_column("deployments", sa.Column("comment", sa.Text(), nullable=False, server_default=""))
    op.add_column("deployments", sa.Column("decision_id", sa.String(length=64), nullable=True))
    op.create_index("uq_deployments_previous", "deployments", ["model_id", "previous"], unique=True)
    op.create_table(
        "champion_watch",
        sa.Column("deployment", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("adherent", sa.Float(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("evaluations", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["deployment"], ["deployments.seq"], name=op.f("fk_champion_watch_deployment")),
        sa.PrimaryKeyConstraint("deployment", name=op.f("pk_champion_watch")),
    )
    op.create_table(
        "alerts",
        sa.Column("seq", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("severity", sa.String(length=16), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=True),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_alerts")),
    )
    op.create_table(
        "mirrored",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=200), nullable=False),
        sa.Column("remote", sa.JSON(), nullable=False),
        sa.Column("mirrored_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("pk_mirrored")),
    )


def downgrade() -> None:
    op.drop_table("mirrored")
    op.drop_table("alerts")
    op.drop_table("champion_watch")
    op.drop_index("uq_deployments_previous", table_name="deployments")
    for column in ("decision_id", "comment", "deployed_by", "kind", "previous"):
        op.drop_column("deployments", column)
    for column in ("rolled_back_reason", "rolled_back_at"):
        op.drop_column("model_versions", column)
