"""How much memory this process may use, given the machine and Linux control groups. No torch, no numpy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

DATA_SHARE = 0.5
"""Data that would take more than this share of memory are not loaded into it."""
MEMBERSHIP = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


def total_bytes() -> int:
    """Memory that this process may use, in bytes: the machine's, or its container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = limit_bytes()
    return total if limit is None else min(total, limit)


def fits(size: int) -> bool:
    """Whether data of `size` bytes should be held in memory: they may take half of it."""
    return size <= DATA_SHARE * total_bytes()


class _Version(NamedTuple):
    """The file names of a version of control groups."""

    folder: str
    limit: str
    used: str
    dropped: str
    """Key in memory.stat for inactive file cache, which the kernel reclaims first."""


_FIRST = _Version("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_SECOND = _Version("", "memory.max", "memory.current", "inactive_file")


def limit_bytes(membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> int | None:
    """The lowest memory limit of this process's groups, in bytes; None if there is no limit."""
    limits = [_number(group / version.limit) for version, group in _groups(membership, mount)]
    return min((value for value in limits if value is not None), default=None)


def free_bytes(membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> int | None:
    """Bytes left below the limits, counting inactive file cache as free; None if there is no limit."""
    left = [_free(version, group) for version, group in _groups(membership, mount)]
    return min((value for value in left if value is not None), default=None)


def _groups(membership: Path, mount: Path) -> Iterator[tuple[_Version, Path]]:
    """This process's groups and their parents.

    A container may see its own group at the mount, whatever its path on the host. Folders that do not exist are
    skipped when they are read.
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
