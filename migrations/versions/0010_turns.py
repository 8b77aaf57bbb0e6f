"""Claims take turns between callers: indexes for who waits, and since when."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_jobs_state_owner_id_id"), "jobs", ["state", "owner_id", "id"])
    op.create_index(op.f("ix_jobs_owner_id_claimed_at"), "jobs", ["owner_id", "claimed_at"])


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_owner_id_claimed_at"), table_name="jobs")
    op.drop_index(op.f("ix_jobs_state_owner_id_id"), table_name="jobs")
