"""The time that decided a job's schedule, and what was chosen for it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Jobs of a former release have none: their schedule was given.
    op.add_column("jobs", sa.Column("minutes", sa.Float(), nullable=True))
    op.add_column("jobs", sa.Column("chosen", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "chosen")
    op.drop_column("jobs", "minutes")
