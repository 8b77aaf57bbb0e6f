"""Keys, data sets, jobs with their events, and condensed sets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATES = ("queued", "running", "canceling", "succeeded", "failed", "canceled")
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def time(name: str, *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def owner() -> sa.Column[str]:
    return sa.Column("owner_id", sa.String(32), sa.ForeignKey("api_keys.id"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("secret_hmac", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        time("created_at", nullable=False),
        time("expires_at"),
        time("last_used_at"),
        time("revoked_at"),
    )
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(40), primary_key=True),
        owner(),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("object_key", sa.String(200), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        time("created_at", nullable=False),
        sa.UniqueConstraint("owner_id", "sha256"),
    )
    op.create_table(
        "set_names",
        sa.Column("name", sa.String(63), primary_key=True),
        owner(),
        sa.Column("latest_version", sa.Integer(), nullable=False),
        time("created_at", nullable=False),
    )
    _create_jobs()
    op.create_table(
        "idempotency_keys",
        sa.Column("owner_id", sa.String(32), sa.ForeignKey("api_keys.id"), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id"), nullable=True),
        time("created_at", nullable=False),
    )
    op.create_table(
        "condensed_sets",
        sa.Column("name", sa.String(63), sa.ForeignKey("set_names.name"), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True),
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id"), nullable=False),
        owner(),
        sa.Column("object_key", sa.String(200), nullable=False),
        sa.Column("object_bytes", sa.BigInteger(), nullable=False),
        sa.Column("master_key", sa.String(200), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        time("created_at", nullable=False),
        time("withdrawn_at"),
        sa.UniqueConstraint("job_id"),
    )


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(40), primary_key=True),
        owner(),
        sa.Column("dataset", sa.String(63), nullable=False),
        sa.Column("name", sa.String(63), sa.ForeignKey("set_names.name"), nullable=False),
        sa.Column("condense", sa.JSON(), nullable=False),
        sa.Column("evaluate", sa.JSON(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(*STATES, native_enum=False, length=16, name="state", create_constraint=True),
            nullable=False,
        ),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("interruptions", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(200)),
        time("lease_expires_at"),
        sa.Column("progress", sa.JSON()),
        time("progressed_at"),
        sa.Column("checkpoint_key", sa.String(200)),
        sa.Column("checkpoint_step", sa.Integer()),
        sa.Column("error_code", sa.String(63)),
        sa.Column("error_detail", sa.Text()),
        sa.Column("set_version", sa.Integer()),
        time("created_at", nullable=False),
        time("started_at"),
        time("ended_at"),
    )
    op.create_index("ix_jobs_state_id", "jobs", ["state", "id"])
    op.create_index("ix_jobs_owner_id_id", "jobs", ["owner_id", "id"])
    op.create_index("ix_jobs_lease_expires_at", "jobs", ["lease_expires_at"])
    op.create_table(
        "job_events",
        sa.Column("id", BIG_ID, primary_key=True),
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("detail", sa.Text()),
        time("created_at", nullable=False),
    )
    op.create_index("ix_job_events_job_id", "job_events", ["job_id"])


def downgrade() -> None:
    for table in (
        "condensed_sets",
        "idempotency_keys",
        "job_events",
        "jobs",
        "set_names",
        "datasets",
        "api_keys",
    ):
        op.drop_table(table)
