"""The tables. `migrations/` creates the same ones; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Dialect,
    Double,
    Enum,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from server.store.states import JobState


def utcnow() -> datetime:
    """The current time in UTC, with its time zone."""
    return datetime.now(UTC)


class UTCDateTime(TypeDecorator[datetime]):
    """A point in time: `timestamptz` on PostgreSQL, UTC without a zone on SQLite, zone-aware in Python."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database. Raises `ValueError` for a time without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone: use utcnow()")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Names every constraint, so that migrations can drop it on both databases."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    # JSON, not JSONB: PostgreSQL then keeps the text, and a manifest is served byte for byte as written.
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UTCDateTime(),
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON(),
    }


class ApiKey(Base):
    """An API key. The database holds the HMAC of its secret, not the secret."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    secret_hmac: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Dataset(Base):
    """An uploaded data set. Its bytes are stored under `object_key`."""

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("owner_id", "sha256"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    name: Mapped[str] = mapped_column(String(63))
    kind: Mapped[str] = mapped_column(String(8))
    """`zip` or `npz`."""
    sha256: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(BigInteger)
    object_key: Mapped[str] = mapped_column(String(200), index=True)
    facts: Mapped[dict[str, Any]]
    """A `DataFacts`."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)


class Job(Base):
    """One condensation job. This table is the queue; the broker only wakes workers up."""

    __tablename__ = "jobs"
    # The first serves lists by state, the second lists by owner; ids sort by time. The others serve claims, which stay
    # fast however many ended jobs an owner has.
    __table_args__ = (
        Index(None, "state", "id"),
        Index(None, "owner_id", "id"),
        Index(None, "state", "owner_id", "id"),
        Index(None, "owner_id", "state"),
        Index(None, "owner_id", "claimed_at"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    dataset: Mapped[str] = mapped_column(String(63))
    """Name of a named data set, or id of an uploaded one."""
    name: Mapped[str] = mapped_column(ForeignKey("set_names.name"))
    """Name of the set to publish."""
    condense: Mapped[dict[str, Any]]
    """A whole `CondenseConfig`."""
    evaluate: Mapped[dict[str, Any]]
    """A whole `EvaluateConfig`."""
    state: Mapped[JobState] = mapped_column(
        Enum(
            JobState,
            native_enum=False,
            length=16,
            name="state",
            create_constraint=True,
            values_callable=lambda states: [state.value for state in states],
        )
    )
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    """Number of claims so far. A worker's writes are refused unless they name this number."""
    interruptions: Mapped[int] = mapped_column(Integer, default=0)
    """Interrupted attempts, except those that a worker's shutdown interrupted."""
    max_runtime_s: Mapped[int | None]
    """Limit in seconds for all attempts together; None: no limit."""
    runtime_s: Mapped[float] = mapped_column(Float, default=0.0, server_default="0")
    """Seconds that earlier attempts took."""
    claimed_at: Mapped[datetime | None]
    """Start of the latest attempt."""
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None] = mapped_column(index=True)
    progress: Mapped[dict[str, Any] | None]
    progressed_at: Mapped[datetime | None]
    checkpoint_key: Mapped[str | None] = mapped_column(String(200))
    checkpoint_step: Mapped[int | None]
    error_code: Mapped[str | None] = mapped_column(String(63))
    error_detail: Mapped[str | None] = mapped_column(Text)
    set_version: Mapped[int | None]
    facts: Mapped[dict[str, Any] | None]
    """A `DataFacts` with the image size of the job; None: submitted to an earlier release."""
    estimate: Mapped[dict[str, Any] | None]
    """A `mdc_core.config.estimate.Estimate`, made at submission."""
    minutes: Mapped[float | None] = mapped_column(Float)
    """The requested time from which the schedule was chosen; None: the request gave the schedule."""
    chosen: Mapped[str | None] = mapped_column(Text)
    """Settings that the service chose, and why, as a sentence."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    started_at: Mapped[datetime | None]
    """Start of the first attempt."""
    ended_at: Mapped[datetime | None]


class JobEvent(Base):
    """A change of a job's state, with the new state."""

    __tablename__ = "job_events"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    state: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int]
    detail: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)


class Worker(Base):
    """A live worker. It must renew `expires_at` in time."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    """The owner in its leases."""
    host: Mapped[str] = mapped_column(String(200))
    device: Mapped[str] = mapped_column(String(200))
    """Name of its device."""
    gpu: Mapped[bool] = mapped_column(Boolean)
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    """Memory of the device."""
    flops: Mapped[float] = mapped_column(Double)
    bandwidth: Mapped[float] = mapped_column(Double)
    start: Mapped[float] = mapped_column(Double)
    """Together with `flops` and `bandwidth`, a `mdc_core.config.estimate.Speed`."""
    started_at: Mapped[datetime] = mapped_column(default=utcnow)
    expires_at: Mapped[datetime]


class IdempotencyKey(Base):
    """The job that a submission created, for when it is sent again."""

    __tablename__ = "idempotency_keys"

    owner_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[datetime] = mapped_column(default=utcnow)


class SetName(Base):
    """A set's name and version counter. It belongs to the API key that used it first."""

    __tablename__ = "set_names"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    latest_version: Mapped[int] = mapped_column(Integer, default=0)
    """The newest version, withdrawn or not; 0 before the first."""
    created_at: Mapped[datetime] = mapped_column(default=utcnow)


class CondensedSet(Base):
    """A published version of a set. It never changes, but can be withdrawn."""

    __tablename__ = "condensed_sets"

    name: Mapped[str] = mapped_column(ForeignKey("set_names.name"), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    object_key: Mapped[str] = mapped_column(String(200), index=True)
    """Key of the `rankmajor/1` object that devices read."""
    object_bytes: Mapped[int] = mapped_column(BigInteger)
    master_key: Mapped[str] = mapped_column(String(200), index=True)
    """Key of the float32 tiles, from which the set can be encoded again."""
    # Deferred: with a thousand ranks, a manifest has some hundred kB, and lists do not show it.
    manifest: Mapped[dict[str, Any]] = mapped_column(JSON, deferred=True)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    withdrawn_at: Mapped[datetime | None]
    """Time of its withdrawal. Its number is not used again."""


class PeriodicTask(Base):
    """A task that one process at a time does at intervals."""

    __tablename__ = "chores"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    begun_at: Mapped[datetime]


class Installation(Base):
    """The installation's id, in one row; see `server.store.installation`."""

    __tablename__ = "installation"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(String(40))


class ObjectHold(Base):
    """Protects an object from the sweep while no row refers to it yet; see `server.store.holds`."""

    __tablename__ = "object_holds"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    object_key: Mapped[str] = mapped_column(String(200), index=True)
    expires_at: Mapped[datetime]
