"""Measure what this device can spend: operations per second, memory, storage, bandwidth to a server."""

from __future__ import annotations

import io
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from mdc_core.delivery import rankmajor
from mdc_core.delivery.budget import Budget
from mdc_core.errors import ConfigError
from mdc_core.system import memory
from mdc_device import wire
from mdc_device.client import Link, fetch_manifest

_LOAD = """
import mdc_device.trainer
for line in open("/proc/self/status"):
    if line.startswith("VmRSS:"):
        print(line.split()[1])
"""
DOWNLOAD_BYTES = 1 << 20
DOWNLOAD_SECONDS = 2.0
LONGEST_SECONDS = 3600.0
"""Upper limit of a measurement's duration."""


def profile(
    url: str | None = None,
    set_name: str | None = None,
    *,
    folder: str | os.PathLike[str] = ".",
    seconds: float = 0.5,
    access: wire.Access | None = None,
) -> Budget:
    """The current budget of this device. `folder` is where the subset will be stored; a measurement takes `seconds`.

    With the URL of a server and the name of a set, one request fetches some of its ranks to measure the bandwidth:
    1 MiB, but at least one rank, for at most 2 s. What cannot be measured stays unlimited.
    """
    bandwidth = None
    if not 0 <= seconds <= LONGEST_SECONDS:
        raise ConfigError(f"seconds is {seconds}: give a number from 0 to {LONGEST_SECONDS:g}")
    if url is not None and set_name is None:
        raise ConfigError("give the name of a set after the URL: the measurement fetches ranks of it")
    if url is not None and set_name is not None:
        bandwidth = measure_bandwidth(url, set_name, access or wire.Access())
    return Budget(
        memory_bytes=free_memory(),
        storage_bytes=shutil.disk_usage(Path(folder)).free,
        bandwidth_bps=bandwidth,
        flops=measure_flops(seconds),
    )


def measure_flops(seconds: float = 0.5) -> float:
    """Sustained float32 operations per second of a matrix product; plans express all other work in this unit.

    After one warm-up, the product is repeated for `seconds`, at least three times. The median run counts, so an
    occasional other process does not distort the rate. numpy uses as many cores as its library does.
    """
    work, operations = _product()
    return _rate(work, operations, seconds)


def free_memory() -> int | None:
    """Bytes that training can use on top of its libraries: what the system and its control groups have free.

    The libraries take about 550 MB, mostly torch; this is measured in a process that loads them. If they are not
    installed, training is impossible and nothing is subtracted.
    """
    limits = [_available(Path("/proc/meminfo")), memory.free_bytes()]
    known = [value for value in limits if value is not None]
    return max(min(known) - library_bytes(), 0) if known else None


def library_bytes() -> int:
    """Memory of a process that has just loaded what `train` needs; 0 if it is not installed, or unknown."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _LOAD]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode < 0:  # killed: too little memory even for the libraries
        return sys.maxsize
    return int(done.stdout or 0) * 1024


def measure_bandwidth(url: str, set_name: str, access: wire.Access) -> float:
    """Bits per second at which ranks of a set arrive from the server at `url`."""
    with Link.to(url, access) as link:
        published = fetch_manifest(link, set_name)
        manifest, info = published.manifest, published.manifest.info
        last = min(info.ipc, max(1, DOWNLOAD_BYTES // info.rank_bytes))
        span = wire.Span(
            path=published.path(info.ipc),
            etag=manifest.digests.subsets[-1],
            start=rankmajor.rank_range(info, 1)[0],
            end=rankmajor.rank_range(info, last)[1],
            size=rankmajor.subset_size(info, info.ipc),
        )
        # The time counts from the first bytes: setting up the connection takes as long at any bandwidth.
        asked = perf_counter()
        counts, times = [], []
        for count in wire.receive(link.http, span, _Nowhere()):
            counts.append(count)
            times.append(perf_counter())
            if times[-1] - asked >= DOWNLOAD_SECONDS:
                break
    if len(counts) > 1 and times[-1] > times[0]:
        return 8 * sum(counts[1:]) / (times[-1] - times[0])
    return 8 * sum(counts) / (times[-1] - asked)


class _Nowhere(io.BytesIO):
    """Discards what is written."""

    def write(self, data: Any) -> int:
        """Report everything as written."""
        return len(data)


def _product(side: int = 384) -> tuple[Callable[[], object], int]:
    """A square matrix product, and its number of operations."""
    values = np.random.default_rng(0).random((2, side, side), dtype=np.float32)
    return lambda: values[0] @ values[1], 2 * side**3


def _rate(work: Callable[[], object], operations: int, seconds: float) -> float:
    work()
    times: list[float] = []
    end = perf_counter() + seconds
    while len(times) < 3 or perf_counter() < end:
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return operations / statistics.median(times)


def _available(meminfo: Path) -> int | None:
    """Linux's MemAvailable in bytes; None if unknown."""
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
