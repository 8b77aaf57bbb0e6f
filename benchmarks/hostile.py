"""What strangers, key holders and neighbours can do to a running service, and what everybody else notices of it.

    python -m benchmarks.hostile --size small > hostile.json      # SQLite and a folder
    python -m benchmarks.hostile --size large > hostile.json      # PostgreSQL and Redis of its own, S3

Every attack is bounded in time and goes to 127.0.0.1 only. Meanwhile `/healthz` is asked twenty times a second, and the
memory of the API and of all processes below it is read. An attack passes when `/healthz` was always answered within a
second, nothing was answered with 500, the API stayed below --memory, and all was as before within ten seconds after it.
Prints one JSON object; the status is 1 when an attack did not pass.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image, PngImagePlugin

from benchmarks.installation import SECRET, Installation
from benchmarks.machine import machine
from benchmarks.published import publish_into
from mdc_core.delivery.rankmajor import SetInfo
from server.store.db import Database
from server.store.objects import open_objects

SETS = {
    "toy": SetInfo(5, 1, ("cat", "dog"), (0.5,), (0.25,), 8, 1),
    "large": SetInfo(1000, 1, tuple(f"class {n}" for n in range(20)), (0.5,), (0.25,), 4, 1),
}
LIMIT_SECONDS = 1.0
"""`/healthz` is answered within this time."""
FEWEST_LOOKS = 5
CALM_SECONDS = 10.0
"""After an attack."""


@dataclass
class Watch:
    """What was seen during an attack."""

    slowest: float = 0.0
    """Seconds of the slowest `/healthz`; infinite: one was not answered."""
    memory: int = 0
    """Bytes of the API process at the most."""
    children: int = 0
    """Bytes of all processes below it, at the most."""
    statuses: Counter[int] = field(default_factory=Counter)
    """Of the attack's own requests."""
    calm_after: float = 0.0
    """Seconds until `/healthz` and `/readyz` were as before."""


class Target:
    """A running service under attack."""

    def __init__(self, installation: Installation, admin: str, reader: str) -> None:
        self.installation = installation
        self.url, self.port, self.pid = installation.url, installation.port, installation.api.process.pid
        self.admin, self.reader = _bearer(admin), _bearer(reader)
        self.statuses: Counter[int] = Counter()
        self.client = httpx.Client(base_url=self.url, timeout=60, limits=httpx.Limits(max_connections=None))

    def ask(self, method: str, path: str, **request: Any) -> int:
        """Status of an answer, which is counted; 0: none came."""
        try:
            status = self.client.request(method, path, **request).status_code
        except httpx.HTTPError:
            status = 0
        self.statuses[status] += 1
        return status

    def together(self, count: int, threads: int, act: Callable[[int], Any]) -> None:
        """Call `act` with 0..count-1, so many at a time."""
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(act, range(count)))

    def connect(self) -> socket.socket:
        """A connection of its own."""
        made = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        made.settimeout(10)
        return made


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# The attacks, each of which ends by itself.


def trickled_headers(target: Target) -> None:
    """64 MB of headers over six connections."""

    def trickle(_: int) -> None:
        with suppress(OSError), target.connect() as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: ")
            for _ in range(160):
                sock.sendall(b"x" * 65536)

    target.together(6, 6, trickle)


def many_headers(target: Target) -> None:
    """Requests of thousands of short header fields, from connections that stay."""

    def send(_: int) -> None:
        with suppress(OSError), target.connect() as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 7000)
            time.sleep(3)

    target.together(200, 200, send)


def idle_connections(target: Target) -> None:
    """More connections than a process usually may have files, that say nothing."""
    with ExitStack() as stack:
        for _ in range(1500):
            with suppress(OSError):
                stack.enter_context(target.connect())
        time.sleep(5)


def half_bodies(target: Target) -> None:
    """Bodies that never end, without a key."""
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(400):
            with suppress(OSError):
                sock = stack.enter_context(target.connect())
                sock.sendall(head + b" " * 200_000)
        time.sleep(5)


def pipelined(target: Target) -> None:
    """Ten thousand requests on a connection that reads none of the answers."""

    def send(_: int) -> None:
        with suppress(OSError), target.connect() as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 10_000)
            time.sleep(2)

    target.together(50, 50, send)


def wrong_keys(target: Target) -> None:
    """Hundreds of keys that do not work; one that works, and is new, is let in."""
    guesses = [_bearer(f"mdc_{number:016x}_{'x' * 43}") for number in range(300)]
    target.together(300, 20, lambda number: target.ask("GET", "/v1/jobs", headers=guesses[number]))
    wanted = {"name": "new", "scopes": ["subsets:read"]}
    made = target.client.post("/v1/keys", json=wanted, headers=target.admin)
    assert made.status_code == 201, made.text
    assert target.ask("GET", "/v1/sets", headers=_bearer(made.json()["key"])) == 200, "a new key was refused"


def long_conditions(target: Target) -> None:
    """Conditions of thirty kilobytes, each another one, on every way."""

    def ask(number: int) -> None:
        value = f'"{number}' + "x" * 28_000 + '"'
        for path in ("/subsets/2?set=toy@1", "/subsets/2?set=toy", "/v1/sets/toy@1/manifest"):
            target.ask("GET", path, headers={**target.reader, "If-None-Match": value})

    target.together(300, 8, ask)


def odd_numbers(target: Target) -> None:
    """Numbers that are none, too small, or too long to be written out, wherever one is taken."""
    numbers = ["1e-320", "5e-324", "1e309", "nan", "-0", "1" * 5000, "1e-5000", "0x10", "١", "1_0", " 1"]
    fields = [
        "flops",
        "bandwidth_bps",
        "seconds",
        "memory_bytes",
        "have_k",
        "epochs",
        "watts",
        "min_accuracy",
    ]

    def ask(at: int) -> None:
        number, name = numbers[at % len(numbers)], fields[at // len(numbers)]
        query = {"set": "toy@1", "seconds": "1", "watts": "1", name: number}
        target.ask("GET", "/subsets/auto", params=query, headers=target.reader)
        target.ask("GET", f"/subsets/{number}", params={"set": "toy@1"}, headers=target.reader)
        with suppress(UnicodeEncodeError):
            headers = {**target.reader, "Range": f"bytes=0-{number}"}
            target.ask("GET", "/subsets/2?set=toy@1", headers=headers)
        raw = f'{{"dataset": "digits", "condense": {{"outer_loops": {number}}}, "minutes": {number}}}'
        body = {"Content-Type": "application/json", **target.admin}
        target.ask("POST", "/v1/jobs", content=raw.encode(), headers=body)

    target.together(len(numbers) * len(fields), 8, ask)


def wrong_lists(target: Target) -> None:
    """Bodies whose every value is wrong."""
    text = "[" + ",".join("-1" for _ in range(50_000)) + "]"
    raw = f'{{"dataset": "digits", "evaluate": {{"sizes": {text}}}}}'
    headers = {"Content-Type": "application/json", **target.admin}
    target.together(20, 4, lambda _: target.ask("POST", "/v1/jobs", content=raw.encode(), headers=headers))


def many_plans(target: Target) -> None:
    """Plans for a set of a thousand sizes."""
    body = {"transfer_bytes": 100_000, "metered": True}
    target.together(
        80, 40, lambda _: target.ask("POST", "/v1/sets/large/plans", json=body, headers=target.reader)
    )


def many_previews(target: Target) -> None:
    """The picture of a large set."""
    target.together(20, 20, lambda _: target.ask("GET", "/v1/sets/large/preview.png", headers=target.reader))


def many_streams(target: Target) -> None:
    """A thousand streams of events by one key."""
    wanted = {"dataset": "digits", "condense": {"ipc": 1}, "max_runtime_s": 1}
    job = target.client.post("/v1/jobs", json=wanted, headers=target.admin).json()["id"]
    key = target.admin["Authorization"]
    head = f"GET /v1/jobs/{job}/events/stream HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(1000):
            with suppress(OSError):
                stack.enter_context(target.connect()).sendall(head.encode())
        time.sleep(5)
    target.ask("POST", f"/v1/jobs/{job}/cancel", headers=target.admin)


def bad_uploads(target: Target) -> None:
    """Archives that expand, have enormous directories, or names that are none; more than are looked into at once."""
    made = [_noted(), _directory(), _arrays("a\ud800b"), _arrays("x" * 100_000), _brackets()]

    def send(at: int) -> None:
        content, kind = made[at % len(made)]
        headers = {"Content-Type": kind, **target.admin}
        target.ask("POST", "/v1/datasets", content=content, headers=headers)

    target.together(20, 20, send)


def slow_uploads(target: Target) -> None:
    """Uploads that stay unfinished."""
    head = (
        "POST /v1/datasets HTTP/1.1\r\nHost: x\r\nContent-Type: application/zip\r\nContent-Length: 100000000\r\n"
        f"Authorization: {target.admin['Authorization']}\r\n\r\n"
    ).encode()
    with ExitStack() as stack:
        for _ in range(60):
            with suppress(OSError):
                sock = stack.enter_context(target.connect())
                sock.sendall(head + b"x" * 100_000)
        time.sleep(5)


def hanging(name: str, target: Target) -> None:
    """A server of the service that is stopped, and goes on after 25 seconds."""
    server = next(server for server in target.installation.servers if server.name == name)
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        end = time.monotonic() + 25
        while time.monotonic() < end:
            target.together(60, 60, lambda _: target.ask("GET", "/v1/jobs", headers=target.admin))
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)


def _noted() -> tuple[bytes, str]:
    notes = PngImagePlugin.PngInfo()
    for number in range(50):
        notes.add_text(f"n{number}", "x" * 1_000_000, zip=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=notes)
    return _zipped({f"train/{n // 2}/{n % 2}.png": buffer.getvalue() for n in range(400)}), "application/zip"


def _directory() -> tuple[bytes, str]:
    return _zipped({f"train/{'x' * 80}{n % 2}/{n}.png": b"" for n in range(150_000)}), "application/zip"


def _zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _arrays(name: str) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        x_train=np.zeros((6, 8, 8), np.uint8),
        y_train=np.array([0, 1, 0, 1, 0, 1]),
        classes=np.array([name, "dog"]),
    )
    return buffer.getvalue(), "application/x-npz"


def _brackets() -> tuple[bytes, str]:
    header = ("{'descr': '|u1', 'fortran_order': False, 'shape': " + "(" * 5000 + ")" * 5000 + "}").encode()
    member = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header
    return _zipped({"x_train.npy": member, "y_train.npy": member}), "application/x-npz"


ATTACKS: dict[str, Callable[[Target], None]] = {
    act.__name__: act
    for act in (
        trickled_headers,
        many_headers,
        idle_connections,
        half_bodies,
        pipelined,
        wrong_keys,
        long_conditions,
        odd_numbers,
        wrong_lists,
        many_plans,
        many_previews,
        many_streams,
        bad_uploads,
        slow_uploads,
    )
}
LARGE: dict[str, Callable[[Target], None]] = {
    "postgresql hangs": partial(hanging, "postgresql"),
    "redis hangs": partial(hanging, "redis"),
}


@contextmanager
def watched(target: Target) -> Iterator[Watch]:
    """What others notice while the block runs, and afterwards."""
    seen, stop = Watch(), threading.Event()
    target.statuses = seen.statuses

    def look() -> None:
        with httpx.Client(base_url=target.url, timeout=20) as client:
            looks = 0
            while looks < FEWEST_LOOKS or not stop.is_set():
                looks += 1
                seen.slowest = max(seen.slowest, _seconds(client, "/healthz"))
                own, below = _memory(target.pid)
                seen.memory, seen.children = max(seen.memory, own), max(seen.children, below)
                stop.wait(0.05)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
    begun = time.monotonic()
    with httpx.Client(base_url=target.url, timeout=20) as client:
        while max(_seconds(client, "/healthz"), _seconds(client, "/readyz")) > LIMIT_SECONDS / 2:
            if time.monotonic() - begun > 60:
                break
            time.sleep(0.1)
    seen.calm_after = time.monotonic() - begun


def _seconds(client: httpx.Client, path: str) -> float:
    begun = time.monotonic()
    try:
        answered = client.get(path).is_success
    except httpx.TransportError:
        answered = False
    return time.monotonic() - begun if answered else float("inf")


def _memory(pid: int) -> tuple[int, int]:
    """Bytes of a process, and of those that it has started."""
    below = 0
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += (task / "children").read_text().split()
        below = sum(_resident(int(child)) for child in set(children))
    return _resident(pid), below


def _resident(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


def main() -> None:
    """Run the attacks one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=["small", "large"], default="small")
    parser.add_argument("--memory", type=int, default=200, help="MiB that the API may take")
    parser.add_argument("--only", nargs="*", help="names of attacks")
    args = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with tempfile.TemporaryDirectory() as name, ExitStack() as cleanup:
        # The service itself begins with the usual limit of open files.
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        installation = Installation(args.size, Path(name), cleanup)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
        database = Database(installation.database_url)
        reader, _ = publish_into(database, open_objects(installation.objects_url), SECRET, SETS)
        database.dispose()
        target = Target(installation, installation.key, reader)
        with httpx.Client(base_url=target.url) as client:
            while _seconds(client, "/readyz") > LIMIT_SECONDS:
                time.sleep(0.2)
        before = _memory(target.pid)[0]
        results = {}
        attacks = ATTACKS | (LARGE if args.size == "large" else {})
        for what in args.only or attacks:
            print(what, file=sys.stderr, flush=True)
            with watched(target) as seen:
                attacks[what](target)
            passed = (
                seen.slowest < LIMIT_SECONDS
                and seen.memory < args.memory * 2**20
                and not seen.statuses[500]
                and seen.calm_after < CALM_SECONDS
                and installation.api.process.poll() is None
            )
            results[what] = {
                "passed": passed,
                "slowest_healthz_s": round(seen.slowest, 3),
                "api_mib": round(seen.memory / 2**20),
                "children_mib": round(seen.children / 2**20),
                "statuses": {str(status): count for status, count in sorted(seen.statuses.items())},
                "calm_after_s": round(seen.calm_after, 2),
            }
        log = sum(path.stat().st_size for path in Path(name).glob("api.log"))
    print(
        json.dumps(
            {
                "what": "attacks on a running service",
                "size": args.size,
                "machine": machine(),
                "api_mib_before": round(before / 2**20),
                "log_mb": round(log / 1e6, 1),
                "attacks": results,
            },
            indent=1,
        )
    )
    sys.exit(not all(result["passed"] for result in results.values()))


if __name__ == "__main__":
    main()
