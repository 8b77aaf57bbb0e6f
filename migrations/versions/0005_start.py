"""What a worker takes to start a training step, beside its speeds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Workers of a former release have not measured it, and are gone soon.
    op.add_column("workers", sa.Column("start", sa.Double(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("workers", "start")
