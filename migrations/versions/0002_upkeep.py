"""A limit to a job's running time; chores that one process does; objects that are being written."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


# Columns are added and dropped in place: SQLite's copy of a table would drop the original, and with it, by the
# cascade, the events of every job.
def upgrade() -> None:
    op.add_column("jobs", sa.Column("max_runtime_s", sa.Integer()))
    op.add_column("jobs", sa.Column("runtime_s", sa.Float(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("claimed_at", sa.DateTime(timezone=True)))
    op.create_table(
        "chores",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "object_holds",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("object_key", sa.String(200), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_object_holds_object_key", "object_holds", ["object_key"])
    op.create_index("ix_datasets_object_key", "datasets", ["object_key"])
    op.create_index("ix_condensed_sets_object_key", "condensed_sets", ["object_key"])
    op.create_index("ix_condensed_sets_master_key", "condensed_sets", ["master_key"])


def downgrade() -> None:
    op.drop_index("ix_condensed_sets_master_key", "condensed_sets")
    op.drop_index("ix_condensed_sets_object_key", "condensed_sets")
    op.drop_index("ix_datasets_object_key", "datasets")
    op.drop_table("object_holds")
    op.drop_table("chores")
    op.drop_column("jobs", "claimed_at")
    op.drop_column("jobs", "runtime_s")
    op.drop_column("jobs", "max_runtime_s")
