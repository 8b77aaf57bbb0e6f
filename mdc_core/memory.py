"""How much memory there is: the machine's, or what Linux control groups leave of it. Knows no torch, nor numpy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

DATA_SHARE = 0.5
"""Data that would take more than this share of a memory stay out of it."""
MEMBERSHIP = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


def total_bytes() -> int:
    """Memory that this process may use: the machine's, or what its container is limited to."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = limit_bytes()
    return total if limit is None else min(total, limit)


def fits(size: int) -> bool:
    """Whether data of `size` bytes should be held in memory: half of it at most."""
    return size <= DATA_SHARE * total_bytes()


class _Version(NamedTuple):
    """Where a version of control groups has its figures."""

    folder: str
    limit: str
    used: str
    dropped: str
    """Key in memory.stat of the cached files that are given back first when memory is wanted."""


_FIRST = _Version("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_SECOND = _Version("", "memory.max", "memory.current", "inactive_file")


def limit_bytes(membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> int | None:
    """The least memory limit of the groups that this process is in; None: no limit."""
    found = [_number(group / version.limit) for version, group in _groups(membership, mount)]
    return min((value for value in found if value is not None), default=None)


def free_bytes(membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> int | None:
    """What is left below the limits, cached files that nobody uses counted as free; None: no limit."""
    found = [_free(version, group) for version, group in _groups(membership, mount)]
    return min((value for value in found if value is not None), default=None)


def _groups(membership: Path, mount: Path) -> Iterator[tuple[_Version, Path]]:
    """Every group that this process is in, and those around it.

    A container may see its own group at the mount, whatever path the machine gives it: folders that do not exist are
    passed over by those who read them.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    for line in ["0::/", "0:memory:/", *lines]:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        version = _SECOND if not controllers else _FIRST if "memory" in controllers.split(",") else None
        if version is None:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for folder in (inner, *inner.parents):
            yield version, mount / version.folder / folder


def _free(version: _Version, group: Path) -> int | None:
    limit, used = _number(group / version.limit), _number(group / version.used)
    if limit is None or used is None:
        return None
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        dropped = int(stat.get(version.dropped, 0))
    except (OSError, ValueError):
        dropped = 0
    return max(limit - used + dropped, 0)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None
