"""Attempts in real child processes: published, killed, stopped, canceled, refused, fenced out."""

from __future__ import annotations

import io
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from mdc_core.data.load import load_named
from mdc_core.delivery import rankmajor
from mdc_core.delivery.manifest import parse_manifest
from mdc_core.delivery.verdict import advice, judged
from server.store import datasets, events, jobs, sets
from server.store.states import JobState
from server.store.tables import Job, JobEvent
from tests.services import free_port
from tests.worker.conftest import Stores
from worker import runner
from worker.exits import DONE, IO_ERROR


@contextmanager
def draining(stores: Stores) -> Iterator[threading.Thread]:
    """A supervisor at work in a thread, as in a worker process."""
    thread = threading.Thread(target=stores.supervisor().drain)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(120)
        late = thread.is_alive()
        if late:  # else it would go on beside the next tests, on their settings
            stores.stop.set()
            thread.join(120)
        assert not late


def children() -> set[int]:
    """Process ids of attempts that this process has started."""
    listed = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="], capture_output=True, text=True, check=False
    )
    return {int(line.split()[0]) for line in listed.stdout.splitlines() if "worker.runner" in line}


def states(stores: Stores, job_id: str) -> list[tuple[str, int]]:
    with stores.database.read() as session:
        rows = session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.id))
        return [(row.state, row.attempt) for row in rows]


def test_an_undisturbed_job_is_published_whole(stores: Stores, tmp_path: Path) -> None:
    job_id = stores.submit()
    with draining(stores):
        pass
    job = stores.job(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    with stores.database.read() as session:
        published = sets.get(session, job.name)
    assert published is not None
    manifest = parse_manifest(published.manifest)
    assert manifest.data_sha256 == load_named("digits", tmp_path).train.fingerprint()
    stored = stores.objects.get(published.object_key)
    assert rankmajor.digests(stored, manifest.info) == manifest.digests
    _, tiles = rankmajor.read(stored)
    assert tiles.shape == (2, 10, 1, 1, 8, 8)
    assert [row.k for row in manifest.accuracy] == [1, 2]
    assert all(row.random_mean is not None for row in manifest.accuracy)
    told = advice(judged(published.manifest["accuracy"], 2))
    with stores.database.read() as session:
        last = events.page(session, job_id, after=0, limit=9)[-1]
    assert last.detail == "version 1" + (f". {told}" if told else "")
    assert set(manifest.cost) == {"convnet-d2-w4"}
    assert stores.objects.head(published.master_key)
    assert list(stores.objects.list("jobs")) == [], "checkpoints of an ended job stay behind"


@pytest.mark.parametrize("earlier", [False, True])
def test_a_set_of_several_tiles_is_compared_with_shrunk_images(stores: Stores, earlier: bool) -> None:
    """A job that an earlier release has stored keeps the baseline that it was submitted with."""
    job_id = stores.submit(factor=2)
    if earlier:
        values = {
            name: value for name, value in stores.job(job_id).evaluate.items() if name != "shrunk_baseline"
        }
        with stores.database.begin() as session:
            session.execute(update(Job).where(Job.id == job_id).values(evaluate=values))
    with draining(stores):
        pass
    with stores.database.read() as session:
        published = sets.get(session, stores.job(job_id).name)
    assert published is not None
    rows = parse_manifest(published.manifest).accuracy
    assert all(row.random_mean is not None for row in rows)
    assert [row.shrunk_mean is None for row in rows] == [earlier] * 2


def kill(stores: Stores, thread: threading.Thread) -> None:
    (child,) = children()
    os.kill(child, signal.SIGKILL)


def shut_down(stores: Stores, thread: threading.Thread) -> None:
    """Stop the worker, then start another. The child waits for the signal: the job is short, and could end before."""
    (child,) = children()
    os.kill(child, signal.SIGSTOP)
    stores.stop.set()
    while not _is_pending(signal.SIGTERM, child):
        assert thread.is_alive()
        time.sleep(0.01)
    os.kill(child, signal.SIGCONT)
    thread.join(60)
    assert not children()
    stores.stop.clear()
    restarted = threading.Thread(target=stores.supervisor().drain)
    restarted.start()
    restarted.join(120)


def _is_pending(number: signal.Signals, process: int) -> bool:
    """Whether the signal was sent to a process that has not met it yet; as proc_pid_status(5) has it."""
    status = Path(f"/proc/{process}/status").read_text()
    masks = re.findall(r"^(?:Sig|Shd)Pnd:\t(\w+)$", status, re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def hang(stores: Stores, thread: threading.Thread) -> None:
    """The child lives, and does nothing any more, in the middle of a write: the worst moment for all others."""
    (child,) = children()
    os.kill(child, signal.SIGSTOP)
    while not _others_wait(stores):
        os.kill(child, signal.SIGCONT)
        time.sleep(random.uniform(0, 0.01))
        os.kill(child, signal.SIGSTOP)


def _others_wait(stores: Stores) -> bool:
    """Whether somebody keeps others from writing to a job: by its row, or by the whole SQLite file."""
    try:
        with stores.database.begin() as session:
            session.execute(select(Job.id).with_for_update(nowait=True))
    except OperationalError:
        return True
    return False


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, str]:
    """Digest of the toy set, once a job of some test has published it."""
    return {}


@pytest.mark.parametrize(
    ("size", "disturb"),
    [("small", kill), ("small", shut_down), ("small", hang), ("large", kill), ("large", hang)],
    indirect=["size"],
)
def test_a_disturbed_job_publishes_the_same_bytes(
    stores: Stores, disturb: Callable[[Stores, threading.Thread], None], undisturbed: dict[str, str]
) -> None:
    """Whatever happens to a child in mid-job, another attempt goes on from its checkpoint."""
    if not undisturbed:
        job_id = stores.submit()
        with draining(stores):
            pass
        undisturbed["digest"] = stores.digest(job_id)
    disturbed = stores.submit()
    with draining(stores) as thread:
        stores.wait_for(disturbed, lambda job: (job.checkpoint_step or 0) >= 3)
        disturb(stores, thread)
    ended = stores.wait_for(disturbed, lambda job: job.ended_at is not None)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2), ended.error_detail
    assert stores.digest(disturbed) == undisturbed["digest"]
    assert states(stores, disturbed) == [
        ("queued", 0),
        ("running", 1),
        ("queued", 1),
        ("running", 2),
        ("succeeded", 2),
    ]
    assert not children()


def test_a_killed_job_finds_the_networks_that_it_has_trained(stores: Stores) -> None:
    """The next attempt goes on with the next network."""
    pool: dict[str, Any] = {
        "method": "feature",
        "subset_loss": "all",
        "n_data": 0,
        "outer_loops": 2,
        "pool": 10,
        "pool_samples": 4000,
    }
    disturbed = stores.submit(**pool)

    def trained() -> dict[str, datetime]:
        return {stored.key: stored.modified for stored in stores.objects.list("pools")}

    with draining(stores) as thread:
        preparing = stores.wait_for(disturbed, lambda job: (job.progress or {}).get("step", 0) >= 2)
        assert preparing.progress is not None
        assert (preparing.progress["phase"], preparing.progress["total"]) == ("preparing", 10)
        kill(stores, thread)
        stores.wait_for(disturbed, lambda job: job.attempt == 2)
        found = trained()
        assert 2 <= len(found) < 10
    job = stores.job(disturbed)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2), job.error_detail
    after = trained()
    assert len(after) == 10
    assert all(after[key] > found[key] for key in found), "their time does not say that they were used"


def test_a_canceled_job_stops(stores: Stores) -> None:
    job_id = stores.submit(outer_loops=100_000)
    with draining(stores):
        stores.wait_for(job_id, lambda job: (job.checkpoint_step or 0) >= 1)
        with stores.database.begin() as session:
            jobs.cancel(session, job_id)
    job = stores.job(job_id)
    assert job.state is JobState.CANCELED
    assert job.lease_owner is None
    assert list(stores.objects.list("jobs")) == []
    assert not children()


def test_a_job_that_is_killed_every_time_fails_in_the_end(stores: Stores) -> None:
    stores.settings = stores.settings.model_copy(update={"max_attempts": 2})
    job_id = stores.submit(outer_loops=100_000)
    with draining(stores) as thread:
        for attempt in (1, 2):
            stores.wait_for(job_id, lambda job, n=attempt: job.attempt == n and job.progress is not None)  # type: ignore[misc]
            kill(stores, thread)
            stores.wait_for(job_id, lambda job, n=attempt: job.attempt > n or job.ended_at is not None)  # type: ignore[misc]
    job = stores.job(job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "too-many-attempts")
    assert list(stores.objects.list("jobs")) == []
    assert "SIGKILL" in (job.error_detail or "")


def test_a_broken_image_fails_the_job_and_names_the_file(stores: Stores) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        for label in ("cat", "dog"):
            for number in (1, 2):
                members.writestr(f"train/{label}/{number}.png", b"\x89PNG\r\n\x1a\n not a picture")
    stores.objects.put("datasets/broken", archive.getvalue())
    facts = {"name": "broken", "channels": 1, "image_size": 8, "classes": ["cat", "dog"], "smallest_class": 1}
    with stores.database.begin() as session:
        row, _ = datasets.add(
            session,
            owner_id=stores.owner_id,
            name="broken",
            kind="zip",
            sha256="0" * 64,
            size=len(archive.getvalue()),
            object_key="datasets/broken",
            facts=facts,
        )
    job_id = stores.submit(dataset=row.id)
    with draining(stores):
        pass
    job = stores.job(job_id)
    assert (job.state, job.attempt, job.error_code) == (JobState.FAILED, 1, "data-error")
    assert "train/cat/1.png" in (job.error_detail or "")


def test_data_that_are_missing_fail_the_job_at_once(stores: Stores) -> None:
    job_id = stores.submit(dataset="imagenet-10")
    with draining(stores):
        pass
    job = stores.job(job_id)
    assert (job.state, job.attempt, job.error_code) == (JobState.FAILED, 1, "data-error")
    assert "which has no train and val folders" in (job.error_detail or "")


def test_a_job_ends_when_it_has_run_for_its_time(stores: Stores) -> None:
    job_id = stores.submit(outer_loops=100_000)
    with draining(stores):
        running = stores.wait_for(job_id, lambda job: (job.checkpoint_step or 0) >= 1)
        assert running.claimed_at is not None
        with stores.database.begin() as session:
            # As if an attempt before this one had taken an hour.
            session.execute(update(Job).where(Job.id == job_id).values(max_runtime_s=3600, runtime_s=3600))
    job = stores.job(job_id)
    assert (job.state, job.attempt, job.error_code) == (JobState.FAILED, 1, "max-runtime")
    assert list(stores.objects.list("jobs")) == []
    assert not children()


@pytest.mark.parametrize("size", ["large"], indirect=True)
def test_an_object_store_that_is_away_is_waited_for(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is the job to blame, nor is anything lost: it goes on when the store is back."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    stores.settings = stores.settings.model_copy(update={"max_attempts": 1, "lease_renew_seconds": 1.0})
    job_id = stores.submit()
    with draining(stores):
        stores.wait_for(job_id, lambda job: job.attempt == 1 and job.state is JobState.QUEUED)
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    job = stores.job(job_id)
    assert (job.state, job.interruptions) == (JobState.SUCCEEDED, 0)
    assert job.attempt >= 2


def test_a_worker_that_cannot_start_an_attempt_gives_the_job_back(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    stores.settings = stores.settings.model_copy(update={"max_attempts": 2, "lease_renew_seconds": 0.1})
    job_id = stores.submit()
    with draining(stores):
        pass
    job = stores.job(job_id)
    assert (job.state, job.attempt, job.error_code) == (JobState.FAILED, 2, "too-many-attempts")
    assert "because the disk is full" in (job.error_detail or "")


@pytest.mark.parametrize("size", ["large"], indirect=True)
def test_a_disk_without_room_is_told_from_a_broken_job(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objects lie in a folder in which no file may have more than a thousand bytes."""
    monkeypatch.setenv("MDC_OBJECTS_URL", f"file://{tmp_path}/objects")
    job_id = stores.submit()
    with stores.database.begin() as session:
        jobs.claim(session, job_id, "tests", 90)
    stdin, held_open = os.pipe()
    done = subprocess.run(
        [sys.executable, "-m", "worker.runner", job_id, "1"],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        check=False,
        timeout=120,
    )
    os.close(stdin)
    os.close(held_open)
    assert done.returncode == IO_ERROR, done.stdout
    assert b"File too large" in done.stdout
    assert list((tmp_path / "objects").rglob("*.*")) == [], "a part of a file was left"
    job = stores.job(job_id)
    assert (job.state, job.checkpoint_key) == (JobState.RUNNING, None), "its supervisor settles it"


def test_an_attempt_that_was_overtaken_writes_nothing(stores: Stores) -> None:
    job_id = stores.submit()
    with stores.database.begin() as session:
        jobs.claim(session, job_id, "first", 90)
        jobs.requeue(session, job_id, 1, "test")
        jobs.claim(session, job_id, "second", 90)
    before = states(stores, job_id)
    stdin, held_open = os.pipe()
    done = subprocess.run(
        [sys.executable, "-m", "worker.runner", job_id, "1"], stdin=stdin, check=False, timeout=120
    )
    os.close(stdin)
    os.close(held_open)
    assert done.returncode == DONE
    assert states(stores, job_id) == before
    assert stores.job(job_id).progress is None


def test_a_child_ends_with_its_parent(stores: Stores) -> None:
    """End-of-file on its standard input is all that a child needs to know of its supervisor."""
    job_id = stores.submit(outer_loops=100_000)
    with stores.database.begin() as session:
        jobs.claim(session, job_id, "tests", 90)
    child = subprocess.Popen(
        [sys.executable, "-m", "worker.runner", job_id, "1"], stdin=subprocess.PIPE, start_new_session=True
    )
    stores.wait_for(job_id, lambda job: (job.checkpoint_step or 0) >= 1)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(30) == -signal.SIGKILL


def test_out_of_memory_has_a_reason_that_helps() -> None:
    code, detail = runner._reason(MemoryError("12 GiB"))
    assert code == "out-of-memory"
    assert "lower ipc, width or batch" in detail
