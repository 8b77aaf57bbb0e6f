"""What 200 watchers and 50 submitters cost one API process: its memory, and how long requests take meanwhile.

    python -m benchmarks.watchers --seconds 20 > watchers.json
    python -m benchmarks.watchers --size large

One API process on SQLite, or with `--size large` on a PostgreSQL of its own. Every job has several watchers. A worker
reports progress each second, which reaches all of them through the database. Submitters, each with its own key, submit
a job, read it and cancel it, then pause. A first round of the same load warms up. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
from httpx_sse import aconnect_sse

from benchmarks.installation import SECRET, Installation
from benchmarks.machine import machine, memory_bytes
from server.access.tokens import create_key
from server.store import jobs
from server.store.db import Database

BODY = {"dataset": "digits", "condense": {"ipc": 1}}
PER_KEY = 50  # jobs of the watched key; every one is watched by several


@dataclass
class Measured:
    """What one round has seen."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Of every request, by what it was."""
    committed: dict[tuple[str, int], float] = field(default_factory=dict)
    """When a step of a job was reported."""
    arrived: list[tuple[str, int, float]] = field(default_factory=list)
    """When a watcher was told of a step."""
    refused: int = 0
    rss: list[int] = field(default_factory=list)

    def delays(self) -> list[float]:
        """From the commit of a report to its arrival at a watcher, in seconds."""
        return [at - self.committed[job_id, step] for job_id, step, at in self.arrived]


def main() -> None:
    """Start the API, load it twice, print what was measured."""
    args = parse()
    os.environ["MDC_KEY_STREAMS"] = "1000"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as cleanup:
        installation = Installation(args.size, Path(folder), cleanup, workers=0)
        os.environ["MDC_DATABASE_URL"] = installation.database_url  # for the workers' process
        db = Database(installation.database_url)
        cleanup.callback(db.dispose)
        result = asyncio.run(measure(args, installation.api.process.pid, installation.url, db))
    print(json.dumps(result, indent=1))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--watchers", type=int, default=200)
    parser.add_argument("--submitters", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=15, help="length of the measured round")
    parser.add_argument("--warm-up", type=float, default=5, help="length of the round before it")
    parser.add_argument("--pause", type=float, default=3, help="seconds between two jobs of a submitter")
    parser.add_argument("--size", choices=["small", "large"], default="small")
    return parser.parse_args()


async def measure(args: argparse.Namespace, pid: int, url: str, db: Database) -> dict[str, Any]:
    """Both rounds, and the memory around them."""
    with db.begin() as session:
        keys = [
            create_key(session, SECRET, name="benchmark", scopes=["jobs:read", "jobs:write"])[1]
            for _ in range(args.submitters + 1)
        ]
    started = memory_bytes(pid) // 2**20
    # A process of their own, as workers are.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as workers:
        await load(args.warm_up, args, url, keys, workers, pid)
        before = memory_bytes(pid) // 2**20
        found = await load(args.seconds, args, url, keys, workers, pid)
    await asyncio.sleep(3)  # connections close, the garbage is collected
    after = memory_bytes(pid) // 2**20
    every = [seconds for kind in found.seconds.values() for seconds in kind]
    return {
        "what": "one API process under watchers and submitters",
        "machine": machine(),
        "database": db.engine.dialect.name,
        "method": {
            "watchers": args.watchers,
            "watched_jobs": PER_KEY,
            "submitters": args.submitters,
            "pause_seconds": args.pause,
            "seconds": args.seconds,
            "warm_up_seconds": args.warm_up,
            "load_average": os.getloadavg()[0],
        },
        "api_rss_mib": {
            "started": started,
            "before": before,
            "most": max(found.rss),
            "after": after,
        },
        "requests": {
            "count": len(every),
            "per_second": round(len(every) / args.seconds, 1),
            "refused": found.refused,
            "max_ms": round(1e3 * max(every)),
            **{kind: quantiles(seconds) for kind, seconds in found.seconds.items()},
        },
        "progress_delay": {"count": len(found.arrived), **quantiles(found.delays())},
    }


async def load(
    seconds: float, args: argparse.Namespace, url: str, keys: list[str], workers: Executor, pid: int
) -> Measured:
    """One round with watched jobs of its own."""
    found = Measured()
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        # A pool of its own for everyone, as on machines of their own: one pool of hundreds of connections looks through
        # all of them at every request, and would be what is measured.
        async def client(key: str) -> httpx.AsyncClient:
            return await stack.enter_async_context(
                httpx.AsyncClient(base_url=url, headers=bearer(key), timeout=60, verify=False)
            )

        watched = await submit_watched(await client(keys[-1]))
        opened = [asyncio.Event() for _ in range(args.watchers)]
        watching = [
            asyncio.create_task(watch(await client(keys[-1]), watched[number % PER_KEY], found, event))
            for number, event in enumerate(opened)
        ]
        await asyncio.gather(*(event.wait() for event in opened))
        submitting = [(await client(key), f"set-{number}") for number, key in enumerate(keys[:-1])]
        until = time.monotonic() + seconds
        await asyncio.gather(
            work(loop, workers, watched, found, until),
            sample(pid, found, until),
            *(submit(one, name, found, until, args.pause) for one, name in submitting),
        )
        await asyncio.gather(*watching)  # they end with their jobs
    return found


async def submit_watched(client: httpx.AsyncClient) -> list[str]:
    """The jobs that will be watched."""
    return [(await client.post("/v1/jobs", json=BODY)).json()["id"] for _ in range(PER_KEY)]


async def watch(client: httpx.AsyncClient, job_id: str, found: Measured, opened: asyncio.Event) -> None:
    """Follow one job to its end."""
    async with aconnect_sse(client, "GET", f"/v1/jobs/{job_id}/events/stream") as source:
        source.response.raise_for_status()
        async for event in source.aiter_sse():
            opened.set()
            step = json.loads(event.data or "{}").get("step")
            if event.event == "progress" and step is not None:
                found.arrived.append((job_id, step, time.monotonic()))


async def submit(client: httpx.AsyncClient, name: str, found: Measured, until: float, pause: float) -> None:
    """Submit, look, cancel, pause, again and again."""

    async def timed(kind: str, method: str, url: str, **request: Any) -> dict[str, Any]:
        began = time.monotonic()
        answer = await client.request(method, url, **request)
        found.seconds.setdefault(kind, []).append(time.monotonic() - began)
        found.refused += answer.is_error
        body: dict[str, Any] = answer.json()
        return body

    await asyncio.sleep(random.uniform(0, pause))  # they have not come together
    while time.monotonic() < until:
        job_id = (await timed("submit", "POST", "/v1/jobs", json={**BODY, "name": name}))["id"]
        await timed("look", "GET", f"/v1/jobs/{job_id}")
        await timed("cancel", "POST", f"/v1/jobs/{job_id}/cancel")
        await asyncio.sleep(pause)


async def work(
    loop: asyncio.AbstractEventLoop,
    workers: Executor,
    job_ids: list[str],
    found: Measured,
    until: float,
) -> None:
    """Be the workers of these jobs: claim them, report progress each second, end them."""
    await loop.run_in_executor(workers, claim, job_ids)
    step = 0
    while time.monotonic() < until:
        committed = await loop.run_in_executor(workers, report, job_ids, step)
        found.committed.update({(job_id, step): at for job_id, at in zip(job_ids, committed, strict=True)})
        step += 1
        await asyncio.sleep(1)
    await loop.run_in_executor(workers, end, job_ids)


# What follows runs in the workers' process: every job in a transaction of its own.


@cache
def database() -> Database:
    """The installation's database."""
    return Database(os.environ["MDC_DATABASE_URL"])


def claim(job_ids: list[str]) -> None:
    """Take the jobs."""
    for job_id in job_ids:
        with database().begin() as session:
            jobs.claim(session, job_id, "benchmark", 3600)


def report(job_ids: list[str], step: int) -> list[float]:
    """Note how far the jobs are; when each was committed."""
    committed = []
    for job_id in job_ids:
        with database().begin() as session:
            jobs.report(session, job_id, 1, {"phase": "condensing", "step": step, "total": 1000})
        committed.append(time.monotonic())
    return committed


def end(job_ids: list[str]) -> None:
    """End the jobs."""
    for job_id in job_ids:
        with database().begin() as session:
            jobs.fail(session, job_id, 1, "benchmark", "it is over")


async def sample(pid: int, found: Measured, until: float) -> None:
    """Note the memory ten times a second."""
    while time.monotonic() < until:
        found.rss.append(memory_bytes(pid) // 2**20)
        await asyncio.sleep(0.1)


def bearer(token: str) -> dict[str, str]:
    """Headers with a key."""
    return {"Authorization": f"Bearer {token}"}


def quantiles(seconds: list[float]) -> dict[str, int]:
    """In milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return {
        "median_ms": round(1e3 * cuts[49]),
        "p99_ms": round(1e3 * cuts[98]),
        "max_ms": round(1e3 * max(seconds)),
    }


if __name__ == "__main__":
    main()
