"""Whether a worker computes on a GPU, whose memory is planned in another way."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Workers of a former release do not say, and are gone soon.
    op.add_column("workers", sa.Column("gpu", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    op.drop_column("workers", "gpu")
