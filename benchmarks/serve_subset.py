"""Requests per second and latency of delivering subsets, beside nginx serving the same bytes in the same run.

    python -m benchmarks.serve_subset --seconds 3 --repeats 5 > serve.json

One process with the API as it is started in production: the key is checked, every request is logged. One
nginx worker with the same files, sendfile and no log. Rounds alternate between the two; the load comes from wrk on the
same machine, so both share its cores with it. The processor time of a request is told besides, as it depends less on
what else the machine does. Then 64 slow readers show what they cost in memory. Needs `wrk`, and
`nginx` for the comparison (Debian packages of these names). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, memory_bytes
from benchmarks.published import publish
from mdc_core.delivery import rankmajor
from mdc_core.delivery.rankmajor import SetInfo
from tests.services import free_port

ROOT = Path(__file__).resolve().parent.parent
# Shaped like CIFAR-10 at 10 images per class (30 720 bytes a rank), and a set of about 10 MB.
SMALL = SetInfo(10, 2, tuple(f"class {c}" for c in range(10)), (0.5,) * 3, (0.25,) * 3, 32, 3)
LARGE = SetInfo(8, 2, tuple(f"class {c}" for c in range(100)), (0.5,) * 3, (0.25,) * 3, 64, 3)
FILES = [("small", SMALL, 1), ("small", SMALL, 5), ("small", SMALL, 10), ("large", LARGE, 8)]
SLOW_READERS, SLOW_BYTES_PER_SECOND = 64, 50_000
REPORT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.stderr:write(string.format(
    '{"requests":%d,"us":%d,"p50":%f,"p99":%f,"errors":%d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def main() -> None:
    """Start both servers, load them in turn, print what was measured."""
    args = parse()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: it makes the load (apt-get install wrk)")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        script = work / "report.lua"
        script.write_text(REPORT)
        token, packed = publish(work / "data", {name: info for name, info, _ in FILES})
        bodies = {(name, k): rankmajor.subset(packed[name], info, k) for name, info, k in FILES}
        with api(work) as (api_pid, base), nginx(work, bodies) as (nginx_pid, files):
            pids = {"api": api_pid, "nginx": nginx_pid}
            targets: list[dict[str, Any]] = [
                {
                    "set": name,
                    "k": k,
                    "bytes": len(bodies[name, k]),
                    "api": f"{base}/v1/sets/{name}@1/subsets/{k}",
                    "nginx": None if files is None else f"{files}/{name}-{k}",
                }
                for name, _, k in FILES
            ]
            for target in targets:
                check(target, bodies[target["set"], target["k"]], token)
            before = round(memory_bytes(api_pid) / 2**20, 1)
            results = [
                measure(target, connections, args, script, token, pids)
                for target in targets
                for connections in args.connections
            ]
            loaded = round(memory_bytes(api_pid) / 2**20, 1)
            slow = slow_readers(targets[-1]["api"], token, args.slow_seconds, api_pid)
    print(
        json.dumps(
            {
                "what": "delivery of subsets",
                "machine": machine(),
                "method": {
                    "seconds": args.seconds,
                    "repeats": args.repeats,
                    "warm_up_seconds": 1,
                    "load": "wrk, 1 thread, keep-alive",
                },
                "results": results,
                "api_memory_mib": {"started": before, "after_load": loaded},
                "slow_readers": slow,
            },
            indent=1,
        )
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=2, help="of one measurement")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each kind")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--slow-seconds", type=float, default=5, help="for which slow readers are watched")
    return parser.parse_args()


@contextmanager
def api(work: Path) -> Iterator[tuple[int, str]]:
    """The API in one process: its id and its URL."""
    port = free_port()
    command = [sys.executable, "-m", "server", "--port", str(port)]
    environment = {**os.environ, "MDC_DATA_DIR": str(work / "data"), "PYTHONPATH": str(ROOT)}
    with (work / "api.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        base = f"http://127.0.0.1:{port}"
        wait_for(f"{base}/healthz", process, work / "api.log")
        yield process.pid, base
    finally:
        process.terminate()
        process.wait()


@contextmanager
def nginx(work: Path, bodies: dict[tuple[str, int], bytes]) -> Iterator[tuple[int, str | None]]:
    """A static server of the same bytes: its worker's id and its URL, which is None where there is no nginx."""
    command = shutil.which("nginx")
    if command is None:
        yield 0, None
        return
    folder = work / "files"
    folder.mkdir()
    work.chmod(0o755)  # the worker may run as another user
    for (name, k), body in bodies.items():
        (folder / f"{name}-{k}").write_bytes(body)
    (folder / "ready").write_bytes(b"ready")
    port = free_port()
    (work / "nginx.conf").write_text(
        f"""
        worker_processes 1; pid {work}/nginx.pid; error_log {work}/nginx.log; daemon off;
        events {{ worker_connections 1024; }}
        http {{
          access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;
          server {{ listen 127.0.0.1:{port}; root {folder}; }}
        }}
        """
    )
    process = subprocess.Popen(
        [command, "-p", str(work), "-c", str(work / "nginx.conf")],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/ready", process, work / "nginx.log")
        worker = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        yield int(worker), f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def measure(
    target: dict[str, Any],
    connections: int,
    args: argparse.Namespace,
    script: Path,
    token: str,
    pids: dict[str, int],
) -> dict[str, Any]:
    """Both servers in turn, `repeats` times after a warm-up."""
    servers = [name for name in ("api", "nginx") if target[name] is not None]
    for server in servers:
        load(target[server], connections, 1, script, token, pids[server])
    rounds = [
        {
            server: load(target[server], connections, args.seconds, script, token, pids[server])
            for server in servers
        }
        for _ in range(args.repeats)
    ]
    measured: dict[str, Any] = {server: summary([one[server] for one in rounds]) for server in servers}
    line = {key: target[key] for key in ("set", "k", "bytes")} | {"connections": connections} | measured
    if "nginx" in measured:
        ratio = measured["api"]["requests_per_second"] / measured["nginx"]["requests_per_second"]
        line["ratio_to_nginx"] = round(ratio, 3)
        line["processor_time_ratio"] = round(measured["nginx"]["cpu_us"] / measured["api"]["cpu_us"], 3)
    print(json.dumps(line), file=sys.stderr, flush=True)
    return line


def load(url: str, connections: int, seconds: int, script: Path, token: str, pid: int) -> dict[str, float]:
    """What one run of wrk found, and the seconds of processor time that process `pid` took for it."""
    before = processor_time(pid)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script)]
    outcome = subprocess.run(
        [*command, "-H", f"Authorization: Bearer {token}", url], capture_output=True, text=True, check=True
    )
    return {**json.loads(outcome.stderr), "cpu": processor_time(pid) - before}


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the runs, with the spread of the rate, and the 99th percentile of each."""
    rates = [run["requests"] / run["us"] * 1e6 for run in runs]
    return {
        "requests_per_second": round(statistics.median(rates), 1),
        "least": round(min(rates), 1),
        "most": round(max(rates), 1),
        "p50_ms": round(statistics.median(run["p50"] for run in runs) / 1000, 3),
        "p99_ms": round(statistics.median(run["p99"] for run in runs) / 1000, 3),
        "p99_ms_of_runs": sorted(round(run["p99"] / 1000, 1) for run in runs),
        "cpu_us": round(statistics.median(run["cpu"] / run["requests"] for run in runs) * 1e6, 1),
        "errors": sum(run["errors"] for run in runs),
    }


def slow_readers(url: str, token: str, seconds: float, pid: int) -> dict[str, Any]:
    """Memory of the API while many connections read the largest file slowly."""
    before = round(memory_bytes(pid) / 2**20, 1)
    host, port = url.split("/")[2].split(":")
    path = "/" + url.split("/", 3)[3]
    readers = []
    for _ in range(SLOW_READERS):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)  # else the kernel reads for us
        reader.connect((host, int(port)))
        reader.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        readers.append(reader)
    most, received = before, 0
    begun = time.monotonic()
    while (elapsed := time.monotonic() - begun) < seconds:
        allowed = int(elapsed * SLOW_BYTES_PER_SECOND * SLOW_READERS)
        for reader in readers:
            if received < allowed:
                received += len(reader.recv(5_000))
        most = max(most, round(memory_bytes(pid) / 2**20, 1))
        time.sleep(0.01)
    for reader in readers:
        reader.close()
    return {
        "connections": SLOW_READERS,
        "bytes_per_second_each": round(received / seconds / SLOW_READERS),
        "seconds": seconds,
        "memory_mib_before": before,
        "memory_mib_most": most,
    }


def check(target: dict[str, Any], body: bytes, token: str) -> None:
    """Both servers answer exactly these bytes."""
    for server in ("api", "nginx"):
        if target[server] is not None:
            request = urllib.request.Request(target[server], headers={"Authorization": f"Bearer {token}"})
            with urllib.request.urlopen(request) as answer:
                if answer.read() != body:
                    raise SystemExit(f"{target[server]} answers other bytes than those of the subset")


def processor_time(pid: int) -> float:
    """Seconds that a process has computed, itself and the kernel for it (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the server answers; ends with its log when it does not."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise SystemExit(f"{url} does not answer: {log.read_text()[-2000:] if log.exists() else ''}")


if __name__ == "__main__":
    main()
