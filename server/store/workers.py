"""Live workers: what each computes on, and how fast it is."""

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
    """Add the worker, live for `seconds` unless it says so again; rows of workers that have vanished go."""
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
    """Keep the worker live for another `seconds`; False when it is not registered any more."""
    kept = update(Worker).where(Worker.id == worker_id)
    kept = kept.values(expires_at=utcnow() + timedelta(seconds=seconds))
    return session.scalar(kept.returning(Worker.id)) is not None


def leave(session: Session, worker_id: str) -> None:
    """Remove the worker."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def largest(session: Session) -> Worker | None:
    """The live worker with the most memory, the fastest of equals; None when none is known."""
    live = select(Worker).where(Worker.expires_at > utcnow())
    return session.scalar(live.order_by(Worker.memory_bytes.desc(), Worker.flops.desc()).limit(1))
