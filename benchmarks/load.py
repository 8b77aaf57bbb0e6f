"""How long requests take while 500 keep-alive clients send one after the other, with pauses, to one API process.

    python -m benchmarks.load --size small > load.json      # SQLite and a folder
    python -m benchmarks.load --size large > load.json      # PostgreSQL and Redis of its own, S3

Every client sends, again and again, what it draws from REQUESTS: for a subset, a manifest, a plan, a list of jobs, or
a new job, which no worker takes. The clients run in --processes of their own. Prints one JSON object; the status is 1
when an answer was not as expected, or when a connection ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from benchmarks.hostile import SETS
from benchmarks.installation import SECRET, Installation
from benchmarks.machine import machine
from benchmarks.published import publish_into
from server.store.db import Database
from server.store.objects import open_objects

UNBOUNDED = {"MDC_KEY_RATE": "", "MDC_KEY_JOBS": "1000000", "MDC_MAX_EXPECTED_SECONDS": "0"}
JOB = json.dumps({"dataset": "digits", "name": "toy-job"})
PLAN = json.dumps({"storage_bytes": 9000})
REQUESTS: dict[str, tuple[int, str, str, str]] = {
    "subset": (86, "GET", "/v1/sets/toy@1/subsets/2", ""),
    "manifest": (10, "GET", "/v1/sets/toy@1/manifest", ""),
    "plan": (1, "POST", "/v1/sets/toy@1/plans", PLAN),
    "jobs": (2, "GET", "/v1/jobs?limit=20", ""),
    "submit": (1, "POST", "/v1/jobs", JOB),
}
"""By name: how many of a hundred, method, path, body."""


def main() -> None:
    """Start the service, load it, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=["small", "large"], default="small")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pause", type=float, default=0.5, help="mean seconds between a client's requests")
    parser.add_argument("--processes", type=int, default=1, help="that the clients run in")
    args = parser.parse_args()
    os.environ.update(UNBOUNDED)
    with tempfile.TemporaryDirectory() as name, ExitStack() as cleanup:
        installation = Installation(args.size, Path(name), cleanup, workers=0)
        database = Database(installation.database_url)
        publish_into(database, open_objects(installation.objects_url), SECRET, {"toy": SETS["toy"]})
        database.dispose()
        share = args.clients // args.processes
        with ProcessPoolExecutor(args.processes) as pool:
            given = [installation.port, installation.key, share, args.seconds, args.pause]
            runs = list(
                pool.map(_clients, *zip(*[given] * args.processes, strict=True), range(args.processes))
            )
    seconds: dict[str, list[float]] = defaultdict(list)
    faults: list[str] = []
    for taken, wrong in runs:
        faults += wrong
        for what, times in taken.items():
            seconds[what] += times
    print(
        json.dumps(
            {
                "what": "answers to keep-alive clients",
                "size": args.size,
                "clients": args.clients,
                "pause": args.pause,
                "machine": machine(),
                "requests_per_second": round(sum(map(len, seconds.values())) / args.seconds),
                "seconds": {what: _summary(times) for what, times in sorted(seconds.items())},
                "faults": len(faults),
                "first_faults": faults[:5],
            },
            indent=1,
        )
    )
    sys.exit(bool(faults))


def _summary(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100)
    return {
        "n": len(times),
        "median": round(cuts[49], 3),
        "p99": round(cuts[98], 3),
        "max": round(max(times), 3),
    }


def _clients(
    port: int, key: str, count: int, seconds: float, pause: float, seed: int
) -> tuple[dict[str, list[float]], list[str]]:
    """Seconds of each kind of request, and what went wrong."""
    return asyncio.run(_all(port, key, count, seconds, pause, seed))


async def _all(
    port: int, key: str, count: int, seconds: float, pause: float, seed: int
) -> tuple[dict[str, list[float]], list[str]]:
    taken: dict[str, list[float]] = defaultdict(list)
    faults: list[str] = []
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        draw = random.Random(seed * 100_000 + number)
        await asyncio.sleep(draw.random())
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        weights = [share for share, *_ in REQUESTS.values()]
        try:
            while time.monotonic() < end:
                (what,) = draw.choices(list(REQUESTS), weights)
                begun = time.monotonic()
                status = await _ask(reader, writer, key, *REQUESTS[what][1:])
                taken[what].append(time.monotonic() - begun)
                if status not in (200, 202):
                    faults.append(f"{what}: {status}")
                # Below the five seconds after which an idle connection is closed.
                await asyncio.sleep(min(4, draw.expovariate(1 / pause)) if pause else 0)
        except (OSError, EOFError) as error:
            faults.append(repr(error))
        finally:
            writer.close()

    await asyncio.gather(*(client(number) for number in range(count)))
    return dict(taken), faults


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str, method: str, path: str, body: str
) -> int:
    """Status of the answer, once its body has been read."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}\r\n{body}".encode())
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    if "content-length" in headers:
        await reader.readexactly(int(headers["content-length"]))
    else:
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
        await reader.readline()
    return int(lines[0].split()[1])


if __name__ == "__main__":
    main()
