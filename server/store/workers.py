"""Live workers, with their devices and speeds."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from server.store.tables import Worker, utcnow


def register(
    session: Session,
    worker_id: str,
    *,
    host: str,
    device: str,
    gpu: bool,
    memory_bytes: int,
    flops: float,
    bandwidth: float,
    start: float,
    seconds: float,
) -> None:
    """Register the worker for `seconds`, and delete the rows of expired workers."""
    session.execute(delete(Worker).where((Worker.expires_at < utcnow()) | (Worker.id == worker_id)))
    session.add(
        Worker(
            id=worker_id,
            host=host,
            device=device,
            gpu=gpu,
            memory_bytes=memory_bytes,
            flops=flops,
            bandwidth=bandwidth,
            start=start,
            expires_at=utcnow() + timedelta(seconds=seconds),
        )
    )


def beat(session: Session, worker_id: str, seconds: float) -> bool:
    """Renew the registration for `seconds`. Returns False if the worker is not registered."""
    renewal = update(Worker).where(Worker.id == worker_id)
    renewal = renewal.values(expires_at=utcnow() + timedelta(seconds=seconds))
    return session.scalar(renewal.returning(Worker.id)) is not None


def leave(session: Session, worker_id: str) -> None:
    """Remove the worker."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def largest(session: Session) -> Worker | None:
    """The live worker with the most memory, then the fastest; None if there is none."""
    live = select(Worker).where(Worker.expires_at > utcnow())
    return session.scalar(live.order_by(Worker.memory_bytes.desc(), Worker.flops.desc()).limit(1))
