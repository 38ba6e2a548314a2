"""The spans that led to an example."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("examples", sa.Column("trace_links", sa.String(length=120)))


def downgrade() -> None:
    with op.batch_alter_table("examples") as batch:
        batch.drop_column("trace_links")
