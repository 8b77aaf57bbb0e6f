"""The memory limits of control groups, of both versions, in the folders where Linux shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdc_core.system import memory


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / f"memory.{name}").write_text(f"{value}\n")


def membership(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "cgroup"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_the_second_version_counts_every_group_around(tmp_path: Path) -> None:
    mine = membership(tmp_path, "0::/user/job")
    group(tmp_path / "user/job", max="max", current=30)
    assert memory.limit_bytes(mine, tmp_path) is None
    assert memory.free_bytes(mine, tmp_path) is None
    group(tmp_path / "user", max=100, current=60)
    assert (memory.limit_bytes(mine, tmp_path), memory.free_bytes(mine, tmp_path)) == (100, 40)
    group(tmp_path / "user/job", max=90, current=30, stat="anon 5\ninactive_file 20")
    assert (memory.limit_bytes(mine, tmp_path), memory.free_bytes(mine, tmp_path)) == (90, 40)
    group(tmp_path / "user", max=100, current=120)
    assert memory.free_bytes(mine, tmp_path) == 0


def test_the_first_version_too(tmp_path: Path) -> None:
    mine = membership(tmp_path, "5:devices:/x", "4:cpu,memory:/jobs/a", "0::/")
    group(tmp_path / "memory", limit_in_bytes=2**63 - 4096, usage_in_bytes=10**9)
    group(tmp_path / "memory/jobs/a", limit_in_bytes=1000, usage_in_bytes=400, stat="total_inactive_file 50")
    assert (memory.limit_bytes(mine, tmp_path), memory.free_bytes(mine, tmp_path)) == (1000, 650)


@pytest.mark.parametrize(
    ("version", "limit", "used"), [("", "max", "current"), ("memory", "limit_in_bytes", "usage_in_bytes")]
)
def test_a_container_sees_its_own_group_at_the_mount(
    tmp_path: Path, version: str, limit: str, used: str
) -> None:
    """Under the path that the machine gives it there is nothing."""
    mine = membership(tmp_path, "4:memory:/docker/5f", "0::/docker/5f")
    group(tmp_path / version, **{limit: 1000, used: 400})
    for found in (mine, tmp_path / "none"):
        assert (memory.limit_bytes(found, tmp_path), memory.free_bytes(found, tmp_path)) == (1000, 600)


def test_without_groups_the_memory_is_that_of_the_machine(tmp_path: Path) -> None:
    mine = membership(tmp_path, "nonsense", "0::/")
    assert (memory.limit_bytes(mine, tmp_path), memory.free_bytes(mine, tmp_path)) == (None, None)
    assert 0 < memory.total_bytes() < 2**60
