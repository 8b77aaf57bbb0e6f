"""What an ended job leaves behind: its checkpoints and the evaluation so far."""

from __future__ import annotations

from server.store.objects import ObjectStore


def delete_leftovers(objects: ObjectStore, job_id: str) -> None:
    """Delete every object of the job's own; the published set lies elsewhere."""
    for key in list(objects.list(f"jobs/{job_id}")):
        objects.delete(key)
