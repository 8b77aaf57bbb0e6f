"""Jobs that are submitted over HTTP while their processes and servers are killed: what was accepted ends, once.

    python benchmarks/chaos.py --size small --jobs 30 --seed 1 > chaos.json

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
import platform
import pwd
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
from sqlalchemy import create_engine, func, select, text

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mdc_core.delivery.signing import dump_private_keys, new_key
from server.store import migrate
from server.store.db import Database
from server.store.objects import open_objects
from server.store.tables import CondensedSet, Dataset, Job, JobEvent
from tests.services import free_port, s3_bucket, s3_kind

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 2
KINDS = 3
"""Different data sets and configurations; every job is of one of these."""
CONDENSE = {
    "ipc": 2,
    "network": {"depth": 1, "width": 4},
    "outer_loops": 12,
    "inner_iterations": 1,
    "mls_period": 2,
    "n_data": 16,
    "batch_real": 4,
    "factor": 1,
}
EVALUATE = {"network": {"depth": 1, "width": 4}, "epochs": 1, "repeats": 1, "random_baseline": False}
SETTINGS = {
    "LEASE_SECONDS": "6",
    "LEASE_RENEW_SECONDS": "1",
    "CHECKPOINT_SECONDS": "0",
    "KILL_GRACE_SECONDS": "20",
    "MAX_ATTEMPTS": "1000",
    "SWEEP_AGE_SECONDS": "0",
    "THREADS": "1",
}
VICTIMS = {"attempt": 5, "worker": 3, "api": 2, "sweep": 2, "redis": 1, "postgresql": 1}
"""How often each is chosen, in relation to the others."""
PAUSE = (2.0, 7.0)
"""Seconds between two blows."""


class Server:
    """A process that is started again whenever it ends."""

    def __init__(
        self, name: str, command: list[str], environment: dict[str, str], log: Path, user: str | None
    ) -> None:
        self.name = name
        self.kill_signal = signal.SIGQUIT if name == "postgresql" else signal.SIGKILL
        self._command, self._environment, self._log, self._user = command, environment, log, user
        self.starts = 0
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """Start it, once more."""
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                user=self._user,
                cwd=self._log.parent,
                start_new_session=True,
            )
        self.starts += 1

    def kill(self) -> None:
        """End it as hard as it can bear, and start it again."""
        self.process.send_signal(self.kill_signal)
        self.process.wait()
        self.start()

    def attempts(self) -> list[int]:
        """Process ids of the attempts of a worker."""
        listed = subprocess.run(
            ["ps", "--ppid", str(self.process.pid), "-o", "pid=,args="],
            capture_output=True,
            text=True,
            check=False,
        )
        return [int(line.split()[0]) for line in listed.stdout.splitlines() if "worker.runner" in line]


class Installation:
    """The service of one size in a folder, with all the servers that it needs."""

    def __init__(self, size: str, folder: Path, cleanup: ExitStack, workers: int = WORKERS) -> None:
        self.size, self.folder = size, folder
        self.mark = f"MDC_DATA_DIR={folder}/data"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = dict(os.environ) | {f"MDC_{name}": value for name, value in SETTINGS.items()}
        (folder / "tmp").mkdir()
        self.environment |= {
            "PYTHONPATH": str(ROOT),
            "MDC_DATA_DIR": f"{folder}/data",
            "TMPDIR": f"{folder}/tmp",
            "MDC_SECRET": "chaos" * 8,
            "MDC_SIGNING_KEYS": dump_private_keys([new_key()]),
        }
        self.servers: list[Server] = []
        cleanup.callback(self.stop)
        self.database_url = f"sqlite:///{folder}/data/mdc.sqlite3"
        self.objects_url = f"file://{folder}/data/objects"
        if size == "large":
            self._start_stores(cleanup)
        migrate.upgrade(self.database_url)
        self.key = self.command("create-key", "chaos", "--scope", "admin").strip()
        self.api = self._serve("api", self._api_command())
        self.workers = [self._serve("worker", [sys.executable, "-m", "worker"]) for _ in range(workers)]

    def wait_until_ready(self) -> None:
        """Wait until `/readyz` succeeds, 60 seconds at most."""
        wait_until(self._is_ready, 60, "the API")

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz").is_success
        except httpx.TransportError:
            return False

    def _start_stores(self, cleanup: ExitStack) -> None:
        user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
        data = self.folder / "postgresql"
        data.mkdir()
        if os.getuid() == 0:
            shutil.chown(data, user)
            for parent in (self.folder, *self.folder.parents[:-1]):
                if parent != Path(tempfile.gettempdir()):
                    parent.chmod(0o755)

        def program(name: str) -> str:
            return str(programs / name) if programs else name

        initialise = [program("initdb"), "-D", str(data), "-U", "mdc", "--auth=trust", "--no-sync"]
        subprocess.run(initialise, check=True, user=user, stdout=subprocess.DEVNULL, cwd=data)
        port, redis_port = free_port(), free_port()
        serve = [program("postgres"), "-D", str(data), "-p", str(port), "-k", str(data), "-h", "127.0.0.1"]
        self._serve("postgresql", serve, user)
        self._serve("redis", ["redis-server", "--port", str(redis_port), "--bind", "127.0.0.1", "--save", ""])
        s3 = cleanup.enter_context(s3_bucket())
        self.database_url = f"postgresql+psycopg://mdc@127.0.0.1:{port}/postgres"
        self.objects_url = f"{s3.url}/chaos"
        os.environ.update(s3.environment)  # this process looks into the bucket, too
        self.environment |= s3.environment | {
            "MDC_DATABASE_URL": self.database_url,
            "MDC_BROKER_URL": f"redis://127.0.0.1:{redis_port}/0",
            "MDC_OBJECTS_URL": self.objects_url,
        }
        wait_until(self._database_answers, 60, "PostgreSQL")

    def _database_answers(self) -> bool:
        engine = create_engine(self.database_url)
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except Exception:  # every driver has its own
            return False
        finally:
            engine.dispose()
        return True

    def _serve(self, name: str, command: list[str], user: str | None = None) -> Server:
        folder = self.folder / "postgresql" if user else self.folder
        server = Server(
            name, command, self.environment, folder / f"{name}.log", user if os.getuid() == 0 else None
        )
        self.servers.append(server)
        return server

    def _api_command(self) -> list[str]:
        return [sys.executable, "-m", "server", "--host", "127.0.0.1", "--port", str(self.port)]

    def command(self, *arguments: str) -> str:
        """`python -m server.cli`; raises when it fails."""
        command = [sys.executable, "-m", "server.cli", *arguments]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True, cwd=self.folder
        )
        return done.stdout

    def stop(self) -> None:
        """TERM, the workers first; whoever does not end is killed."""
        for server in sorted(self.servers, key=lambda server: server.name != "worker"):
            if server.name != "worker":
                continue
            server.process.terminate()
        for server in reversed(self.servers):
            # SIGINT: PostgreSQL then does not wait for its clients.
            server.process.send_signal(signal.SIGINT if server.name == "postgresql" else signal.SIGTERM)
            try:
                server.process.wait(60)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()
        self.servers.clear()

    def processes(self) -> list[str]:
        """Commands of all processes that were started with this installation's environment."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found


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
            attempts = [pid for worker in self._installation.workers for pid in worker.attempts()]
            if not attempts:
                return
            with suppress(ProcessLookupError):
                os.kill(self._random.choice(attempts), signal.SIGKILL)
        else:
            of_that_name = [server for server in self._installation.servers if server.name == name]
            self._random.choice(of_that_name).kill()
        self.kills[name] += 1


def wait_until(condition: Any, seconds: float, what: str) -> None:
    """Poll; raises `RuntimeError` when it takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {seconds:g} s")
        time.sleep(0.5)


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
        wait_until(installation._database_answers, 60, "the database")
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
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    print(
        json.dumps({"what": "jobs that end whatever is killed", "machine": machine, "runs": runs}, indent=1)
    )
    return 1 if any(one["wrong"] for one in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
