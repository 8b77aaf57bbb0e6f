"""How much memory there is, and what should rather stay on disk. Knows no torch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from mdc_core.estimate import DATA_SHARE

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def total_bytes() -> int:
    """Memory that this process may use: the machine's, or what its container is limited to."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # no such limit, or "max"
            total = min(total, int(Path(path).read_text()))
    return total


def fits(size: int) -> bool:
    """Whether data of `size` bytes should be held in memory: half of it at most."""
    return size <= DATA_SHARE * total_bytes()
