"""Quotas per API key: waiting and running jobs, and bytes of uploads. Checked in the transaction that adds one."""

from __future__ import annotations

from sqlalchemy.orm import Session

from server.store import datasets, jobs, keys
from server.web.problems import Problem

RETRY_JOBS_SECONDS = 60
"""`Retry-After` of a full job quota: a job may have ended by then."""


def check_jobs(session: Session, key_id: str, most: int) -> None:
    """Check for room for one more job. Concurrent submissions with the key wait until this one commits.

    Raises:
        Problem: 429 if `most` jobs wait or run.
    """
    keys.lock(session, key_id)
    active = jobs.count_active(session, key_id)
    if active >= most:
        raise Problem(
            429,
            "too-many-jobs",
            f"{active} jobs of the API key {key_id} wait or run, and the limit is {most}: cancel one, or wait for "
            "one to end",
            headers={"Retry-After": str(RETRY_JOBS_SECONDS)},
        )


def check_upload(session: Session, key_id: str, size: int, most: int) -> None:
    """Check for room for an upload of `size` bytes. Concurrent uploads with the key wait until this one commits.

    Raises:
        Problem: 413 if the key would have more than `most` bytes.
    """
    keys.lock(session, key_id)
    stored = datasets.stored_bytes(session, key_id)
    if stored + size > most:
        raise Problem(
            413,
            "upload-quota",
            f"the body has {size} bytes, and {stored} of the {most} bytes that the API key {key_id} may have are "
            "used: upload less, or ask the operator to raise MDC_KEY_UPLOAD_BYTES",
        )
