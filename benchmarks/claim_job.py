"""How long a claim takes with few and with many jobs in the queue, and that two workers never get the same job.

    python -m benchmarks.claim_job > claim_job.json

On SQLite in a temporary folder and on a PostgreSQL database of its own (MDC_TEST_DATABASE_URL, or a local server).
A claim is the transaction that a worker makes: the oldest queued job, its lease, its event. The queue has the same
length at every claim that is timed, since each job is put back. Rounds alternate between the lengths. Then two
processes empty a queue together, and every job's claims are counted. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import delete, insert, select, text

from benchmarks.machine import machine
from server.access.tokens import create_key
from server.store import jobs, migrate, sets
from server.store.db import Database
from server.store.ids import new_id
from server.store.states import JobState
from server.store.tables import Job, JobEvent
from tests.services import postgres_database

LENGTHS = (10, 1_000, 10_000)
LEASE = 90.0


def main() -> None:
    """Measure, then print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--claims", type=int, default=100, help="claims per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--race", type=int, default=1_000, help="jobs that two processes race for")
    given = parser.parse_args()
    report: dict[str, Any] = {
        "what": "claim of the oldest queued job, in ms",
        "method": f"{given.rounds} rounds of {given.claims} claims per length, alternating; each job is put back",
        "machine": machine(),
        "databases": {},
    }
    for name in ("sqlite", "postgresql"):
        with _database(name) as url:
            report["databases"][name] = {
                "claims": _claims(url, given.claims, given.rounds),
                "race": _race(url, given.race),
            }
    print(json.dumps(report, indent=1))


@contextmanager
def _database(name: str) -> Iterator[str]:
    if name == "postgresql":
        with postgres_database() as url:
            migrate.upgrade(url)
            yield url
        return
    with tempfile.TemporaryDirectory(prefix="mdc-queue-") as folder:
        url = f"sqlite:///{folder}/mdc.sqlite3"
        migrate.upgrade(url)
        yield url


def _fill(database: Database, length: int) -> None:
    """Leave exactly so many queued jobs, among as many that have ended."""
    with database.begin() as session:
        session.execute(delete(JobEvent))
        session.execute(delete(Job))
        key, _ = create_key(session, b"k" * 32, name="queue", scopes=["jobs:write"])
        name = f"queue-{key.id}"
        sets.claim_name(session, name, key.id)
        row = {"owner_id": key.id, "dataset": "digits", "name": name, "condense": {}, "evaluate": {}}
        states = [JobState.SUCCEEDED, JobState.QUEUED] * length
        session.execute(insert(Job), [row | {"id": new_id("job"), "state": state} for state in states])
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))


def _claim(database: Database, owner: str) -> Job | None:
    with database.begin() as session:
        return jobs.claim(session, None, owner, LEASE)


def _claims(url: str, count: int, rounds: int) -> dict[str, Any]:
    database = Database(url)
    times: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for _ in range(rounds):
        for length in LENGTHS:
            _fill(database, length)
            for number in range(count + 5):
                begun = time.perf_counter()
                job = _claim(database, "benchmark")
                if number >= 5:  # the first ones warm up
                    times[length].append(1000 * (time.perf_counter() - begun))
                assert job is not None
                with database.begin() as session:
                    jobs.requeue(session, job.id, job.attempt, "benchmark", counted=False)
    database.dispose()
    medians = {length: statistics.median(values) for length, values in times.items()}
    shown = {
        str(length): {
            "median": round(medians[length], 3),
            "p99": round(statistics.quantiles(values, n=100)[98], 3),
            "n": len(values),
        }
        for length, values in times.items()
    }
    return {
        "queued": shown,
        "ratio_longest_to_shortest": round(medians[LENGTHS[-1]] / medians[LENGTHS[0]], 2),
    }


def _empty(url: str, owner: str, barrier: Any, results: Any) -> None:
    """One of the processes that race."""
    database = Database(url)
    taken = []
    barrier.wait()
    begun = time.perf_counter()
    while (job := _claim(database, owner)) is not None:
        taken.append(job.id)
    results.put((owner, taken, time.perf_counter() - begun))
    database.dispose()


def _race(url: str, count: int) -> dict[str, Any]:
    database = Database(url)
    _fill(database, count)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    racers = [context.Process(target=_empty, args=(url, f"worker-{n}", barrier, results)) for n in range(2)]
    for racer in racers:
        racer.start()
    found = [results.get(timeout=300) for _ in racers]
    for racer in racers:
        racer.join()
    claims = Counter(job_id for _, taken, _ in found for job_id in taken)
    with database.read() as session:
        recorded = Counter(session.scalars(select(JobEvent.job_id).where(JobEvent.state == "running")))
        left = session.scalars(select(Job.id).where(Job.state == JobState.QUEUED)).all()
    database.dispose()
    return {
        "jobs": count,
        "claimed": {owner: len(taken) for owner, taken, _ in found},
        "claimed_twice": sum(1 for times in (claims | recorded).values() if times > 1),
        "left": len(left),
        "seconds": round(max(seconds for *_, seconds in found), 2),
    }


if __name__ == "__main__":
    main()
