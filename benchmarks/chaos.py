"""Jobs that are submitted over HTTP while their processes and servers are killed: what was accepted ends, once.

    python -m benchmarks.chaos --size small --jobs 30 --seed 1 > chaos.json

One API, two workers; `small` has SQLite, a broker file and a folder, `large` a PostgreSQL and a Redis of its own (the
programs must be installed) and the S3 server at MDC_TEST_S3_URL, or moto. First every kind of job runs undisturbed.
Then clients submit with an Idempotency-Key and repeat what fails, while an attempt's process, a worker, the API, Redis
(all by SIGKILL) or PostgreSQL (by SIGQUIT: it recovers as from a crash) ends every few seconds at random, and sweeps
of everything that is unreferenced run in between. Whatever ended is started again.

At the end: every accepted job succeeded exactly once, its set has the bytes of the undisturbed run, no process, no
lease and no unreferenced object is left, and every object that a row names is there. Prints one JSON object; the
status is 1 when something of this is not so.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from sqlalchemy import func, select

from benchmarks.installation import CONDENSE, EVALUATE, Installation, wait_until
from benchmarks.machine import machine
from server.store.db import Database
from server.store.objects import open_objects
from server.store.tables import CondensedSet, Dataset, Job, JobEvent
from tests.services import s3_kind

KINDS = 3
"""Different data sets and configurations; every job is of one of these."""
VICTIMS = {"attempt": 5, "worker": 3, "api": 2, "sweep": 2, "redis": 1, "postgresql": 1}
"""How often each is chosen, in relation to the others."""
PAUSE = (2.0, 7.0)
"""Seconds between two blows."""


class Client:
    """A caller who repeats what fails, until it is answered."""

    def __init__(self, installation: Installation) -> None:
        self._url = installation.url
        self._headers = {"Authorization": f"Bearer {installation.key}"}
        self.repeated: Counter[str] = Counter()

    def call(self, method: str, path: str, **request: Any) -> Any:
        """The answer's JSON."""
        headers = self._headers | request.pop("headers", {})
        end = time.monotonic() + 300
        while True:
            try:
                answer = httpx.request(method, self._url + path, headers=headers, timeout=60, **request)
            except httpx.TransportError as error:
                self.repeated[type(error).__name__] += 1
            else:
                if answer.is_success:
                    return answer.json()
                if answer.status_code < 500:
                    raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text}")
                self.repeated[str(answer.status_code)] += 1
            if time.monotonic() > end:
                raise RuntimeError(f"{method} {path} was not answered for 300 s")
            time.sleep(0.3)

    def submit(self, kind: int, key: str) -> str:
        """Upload the data of a kind of job, and submit one; its id."""
        dataset = self.call(
            "POST", "/v1/datasets", content=toy_data(kind), headers={"Content-Type": "application/x-npz"}
        )
        body = {
            "dataset": dataset["id"],
            "name": f"kind-{kind}",
            "condense": CONDENSE | {"seed": kind},
            "evaluate": EVALUATE,
        }
        job_id: str = self.call("POST", "/v1/jobs", json=body, headers={"Idempotency-Key": key})["id"]
        return job_id

    def ended(self, job_ids: list[str]) -> bool:
        """Whether all of these jobs have ended."""
        jobs = [self.call("GET", f"/v1/jobs/{job_id}") for job_id in job_ids]
        return all(job["ended_at"] is not None for job in jobs)


def toy_data(kind: int) -> bytes:
    """Two classes of 8 × 8 pixels, as an npz; the same bytes every time."""
    drawn = np.random.default_rng(kind)
    labels = np.arange(24) % 2
    images = np.clip(drawn.normal(80 + 90 * labels[:, None, None], 30, (24, 8, 8)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    np.savez(file, x_train=images, y_train=labels)
    return file.getvalue()


class Chaos:
    """A thread that strikes at random until it is stopped."""

    def __init__(self, installation: Installation, seed: int) -> None:
        self._installation = installation
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.kills: Counter[str] = Counter()
        self.swept = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Strike no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        present = {server.name for server in self._installation.servers} | {"attempt", "sweep"}
        names = [name for name in VICTIMS if name in present]
        while not self._stop.wait(self._random.uniform(*PAUSE)):
            name = self._random.choices(names, [VICTIMS[name] for name in names])[0]
            self._strike(name)

    def _strike(self, name: str) -> None:
        if name == "sweep":
            with suppress(subprocess.CalledProcessError):  # a store is away
                self.swept += len(self._installation.command("sweep", "--allow-most").splitlines())
        elif name == "attempt":
            attempts = [pid for worker in self._installation.workers() for pid in worker.attempts()]
            if not attempts:
                return
            with suppress(ProcessLookupError):
                os.kill(self._random.choice(attempts), signal.SIGKILL)
        else:
            of_that_name = [server for server in self._installation.servers if server.name == name]
            self._random.choice(of_that_name).kill()
        self.kills[name] += 1


def findings(installation: Installation, accepted: dict[str, str], kinds: dict[str, int]) -> Iterator[str]:
    """Everything that is not as it must be; `accepted` is idempotency key to job id, `kinds` key to kind."""
    if len(set(accepted.values())) != len(accepted):
        yield "two submissions got the same job"
    database = Database(installation.database_url)
    objects = open_objects(installation.objects_url)
    with database.read() as session:
        jobs = {job.id: job for job in session.scalars(select(Job))}
        successes = Counter(session.scalars(select(JobEvent.job_id).where(JobEvent.state == "succeeded")))
        published = list(session.scalars(select(CondensedSet)))
        digests = {
            (name, version): manifest["object"]["sha256"]
            for name, version, manifest in session.execute(
                select(CondensedSet.name, CondensedSet.version, CondensedSet.manifest)
            )
        }
        referred = {key for one in published for key in (one.object_key, one.master_key)}
        referred |= set(session.scalars(select(Dataset.object_key)))
        newest = list(session.scalars(select(func.max(CondensedSet.version)).group_by(CondensedSet.name)))
    database.dispose()
    if set(jobs) != set(accepted.values()):
        yield f"{len(accepted)} jobs were accepted, the database has {len(jobs)}"
    for job in jobs.values():
        if job.state != "succeeded" or successes[job.id] != 1:
            yield f"{job.id} is {job.state.value}, and succeeded {successes[job.id]} times: {job.error_detail}"
        if job.lease_owner is not None or job.lease_expires_at is not None:
            yield f"{job.id} has a lease"
    if len(published) != len(jobs) or sum(newest) != len(jobs):
        yield f"{len(jobs)} jobs have published {len(published)} versions; the newest are {newest}"
    for key, job_id in accepted.items():
        job, reference = jobs[job_id], jobs[accepted[f"undisturbed-{kinds[key]}"]]
        if digests.get((job.name, job.set_version)) != digests.get((reference.name, reference.set_version)):
            yield f"{job_id} has published other bytes than {reference.id}"
    stored = {
        found.key for folder in ("jobs", "datasets", "sets", "masters") for found in objects.list(folder)
    }
    if stored != referred:
        yield f"unreferenced: {sorted(stored - referred)}; missing: {sorted(referred - stored)}"
    for key in referred & stored:
        name = key.split("/")[1].partition(".")[0]
        if hashlib.sha256(objects.get(key)).hexdigest() != name:
            yield f"{key} has another content"


def run(size: str, seed: int, count: int, keep: bool) -> dict[str, Any]:
    """Everything on an installation of one size; what was counted, and what is wrong."""
    begun = time.monotonic()
    with ExitStack() as cleanup:
        folder = Path(tempfile.mkdtemp(prefix="mdc-chaos-"))
        if not keep:
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        installation = Installation(size, folder, cleanup)
        client = Client(installation)
        kinds = {f"undisturbed-{kind}": kind for kind in range(KINDS)}
        accepted = {key: client.submit(kind, key) for key, kind in kinds.items()}
        wait_until(lambda: client.ended(list(accepted.values())), 600, "the undisturbed jobs")
        undisturbed = time.monotonic() - begun
        say(f"{size}: {KINDS} jobs undisturbed in {undisturbed:.0f} s; now {count} with kills")
        chaos = Chaos(installation, seed)
        chaos.start()
        disturbed = {f"job-{number}": number % KINDS for number in range(count)}
        kinds |= disturbed
        try:
            with ThreadPoolExecutor(4) as pool:
                accepted |= dict(
                    zip(disturbed, pool.map(client.submit, disturbed.values(), disturbed), strict=True)
                )
            say(f"{size}: all accepted after {time.monotonic() - begun:.0f} s")
            wait_until(lambda: client.ended(list(accepted.values())), 3600, "the jobs")
        finally:
            chaos.stop()
        wall = time.monotonic() - begun
        database = Database(installation.database_url)
        wait_until(installation.database_answers, 60, "the database")
        with database.read() as session:
            attempts = session.scalars(select(Job.attempt)).all()
        database.dispose()
        for server in [server for server in installation.servers if server.name in ("api", "worker")]:
            server.process.terminate()
            server.process.wait(120)
            installation.servers.remove(server)
        orphans = [command for command in installation.processes() if "redis" not in command]
        orphans = [command for command in orphans if "postgres" not in command]
        installation.command("sweep", "--allow-most")
        wrong = [
            *findings(installation, accepted, kinds),
            *(f"still running: {command}" for command in orphans),
        ]
        return {
            "size": size,
            "seed": seed,
            "jobs": len(accepted),
            "s3": s3_kind() if size == "large" else None,
            "kills": dict(sorted(chaos.kills.items())),
            "objects_swept_meanwhile": chaos.swept,
            "attempts": {"total": sum(attempts), "most": max(attempts)},
            "requests_repeated": dict(client.repeated),
            "seconds": round(wall, 1),
            "seconds_undisturbed": round(undisturbed, 1),
            "wrong": wrong,
        }


def say(line: str) -> None:
    """To standard error, for whoever waits."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Run, print, and tell by the status whether anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=30)
    parser.add_argument("--size", choices=["small", "large", "both"], default="both")
    parser.add_argument("--keep", action="store_true", help="keep the folder with data and logs")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    say(f"seed {seed}")
    sizes = ["small", "large"] if given.size == "both" else [given.size]
    runs = [run(size, seed, given.jobs, given.keep) for size in sizes]
    report = {"what": "jobs that end although processes are killed", "machine": machine(), "runs": runs}
    print(json.dumps(report, indent=1))
    return 1 if any(one["wrong"] for one in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
