"""Growing and shrinking in place: byte-equal with a fresh fetch, whatever happens between two steps."""

from __future__ import annotations

import errno
import itertools
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import safe_open

from mdc_core.delivery import rankmajor
from mdc_core.errors import DigestError, FormatError
from mdc_core.system import atomic_file
from mdc_device import api, assembly, files, state
from mdc_device.cli import main
from mdc_device.decode import open_subset
from mdc_device.errors import RefusedError
from tests.device.conftest import served_set, serving

ACCESS = api.Access("mdc_1_secret", timeout_s=10, retries=1)
COMPANIONS = ("", ".manifest.json", ".state.json")


def fetched(device: Any, path: Path, k: int) -> Path:
    api.fetch(device.url, "toy", path, k=k, access=ACCESS)
    return path


def copied(source: Path, target: Path) -> Path:
    for ending in COMPANIONS:
        shutil.copyfile(f"{source}{ending}", f"{target}{ending}")
    return target


def test_every_size_becomes_every_other(device10: Any, tmp_path: Path) -> None:
    fresh = {k: fetched(device10, tmp_path / f"fresh-{k}", k) for k in range(1, 11)}
    size = device10.info.rank_bytes
    for old, new in itertools.product(fresh, fresh):
        file = copied(fresh[old], tmp_path / "file")
        device10.requests.clear()
        if new >= old:
            done = api.grow(file, new, access=ACCESS)
            assert (done.received_bytes, done.repaired_ranks) == ((new - old) * size, ())
            first, end = rankmajor.subset_size(device10.info, old), rankmajor.subset_size(device10.info, new)
            assert device10.ranges() == ([f"bytes={first}-{end - 1}"] if new > old else [])
        else:
            assert api.shrink(file, new).verified
            assert device10.requests == []
        for ending in COMPANIONS:
            assert Path(f"{file}{ending}").read_bytes() == Path(f"{fresh[new]}{ending}").read_bytes()


class Crash(Exception):
    """Ends a command where a power cut might."""


def crashing(monkeypatch: pytest.MonkeyPatch, at: int) -> list[str]:
    """Let the step of this number raise; returns the list to which steps are added as they begin."""
    begun: list[str] = []

    def counted(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            begun.append(name)
            if len(begun) == at:
                raise Crash
            return act(*given)

        return run

    for module, name in (
        (atomic_file, "sync"),
        (atomic_file, "publish"),
        (files, "check_room"),
        (assembly, "_copy"),
        (assembly, "_write_header"),
        (state, "_save"),
        (state, "_put_manifest"),
    ):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return begun


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 5), (4, 5), (5, 4), (5, 1), (3, 2)])
def test_whatever_a_crash_leaves_is_a_whole_subset(
    device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: int, new: int
) -> None:
    """For every reader; and the same command makes it what was wanted, and repair finds nothing to mend."""
    original = fetched(device, tmp_path / "original", old)

    def command(file: Path) -> None:
        api.grow(file, new, access=ACCESS) if new > old else api.shrink(file, new)

    for at in itertools.count(1):
        file = copied(original, tmp_path / "file")
        files.part_of(file).unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            begun = crashing(patch, at)
            try:
                command(file)
            except Crash:
                pass
            else:
                break
        with safe_open(file, "np") as opened:
            k = len(opened.get_tensor("tiles"))
        assert k in (old, new)
        assert file.read_bytes() == device.subset(k)
        assert api.status(file).verified, begun
        device.requests.clear()
        assert api.verify(file, repair=True, access=ACCESS).k == k
        assert device.ranges() == []
        command(file)
        assert file.read_bytes() == device.subset(new)
        assert not files.part_of(file).exists()
    assert {"sync", "publish", "_copy"} <= set(begun)


def test_without_room_for_another_file_it_shrinks_in_place(
    device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = fetched(device, tmp_path / "file", 5)
    monkeypatch.setattr("mdc_device.files.shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    inode = file.stat().st_ino
    assert api.shrink(file, 2).verified
    assert (file.read_bytes(), file.stat().st_ino) == (device.subset(2), inode)
    with pytest.raises(
        OSError, match=r"subset 4 of 'toy' needs \d+ more bytes, but only 100 are free"
    ) as caught:
        api.grow(file, 4, access=ACCESS)
    assert caught.value.errno == errno.ENOSPC
    assert file.read_bytes() == device.subset(2)


SMALL_DISK = """
import resource, sys
from mdc_device.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
sys.exit(main(sys.argv[1:]))
"""


def test_storage_that_ends_midway_is_named(device: Any, tmp_path: Path) -> None:
    """As when another program takes what was free."""
    file = fetched(device, tmp_path / "file", 1)
    for command in (
        ["grow", str(file), "--k", "5"],
        ["fetch", device.url, "toy", "--to", str(tmp_path / "b")],
    ):
        done = subprocess.run(
            [sys.executable, "-c", SMALL_DISK, *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        target = file if command[0] == "grow" else tmp_path / "b"
        assert f"writing subset 5 of 'toy', which has {len(device.subset(5))} bytes" in done.stderr
        assert f"'{target}.part'" in done.stderr
    assert file.read_bytes() == device.subset(1)
    assert main(["grow", str(file), "--k", "5"]) == 0
    assert file.read_bytes() == device.subset(5)


@pytest.mark.parametrize("command", ["grow", "shrink", "verify", "verify --repair", "status", "fetch"])
def test_a_busy_file_is_left_alone(
    device: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    file = fetched(device, tmp_path / "file", 3)
    more = {"grow": ["--k", "4"], "shrink": ["--k", "2"]}.get(command, [])
    given = [*command.split(), str(file), *more]
    if command == "fetch":
        given = ["fetch", device.url, "toy", "--to", str(file)]
    with files.locked(file):
        assert main(given) == 7
    assert "another process" in capsys.readouterr().err
    assert file.read_bytes() == device.subset(3)
    with files.locked(file, shared=True):
        assert main(given) == (0 if command in ("verify", "status") else 7)


def test_readers_do_not_keep_each_other_away(device: Any, tmp_path: Path) -> None:
    """Each removes the lock when it is the last, and must be alone for that moment."""
    file = fetched(device, tmp_path / "file", 3)

    def reading(_: int) -> None:
        for _ in range(100):
            with files.locked(file, shared=True):
                pass

    with ThreadPoolExecutor(4) as readers:
        list(readers.map(reading, range(4)))
    assert not files.lock_of(file).exists()


def test_what_cannot_be_locked_because_nobody_can_change_it_is_read(
    device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = fetched(device, tmp_path / "file", 3)

    def refused(*_: object) -> int:
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr("mdc_device.files.os.open", refused)
    assert api.status(file).verified
    with pytest.raises(OSError, match="read-only"):
        api.shrink(file, 2)


def read_bytes() -> int:
    """What this process has read from files so far; sockets do not count."""
    found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
    assert found
    return int(found[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux tells what a process reads")
def test_nothing_is_read_twice(tmp_path: Path) -> None:
    """A fetch hashes what comes while it writes; all else reads what the file has once, in pieces."""
    with serving(served_set(side=512)) as device:  # 786 kB a rank
        rank, file = device.info.rank_bytes, tmp_path / "file"

        def ranks_read(command: Callable[[], object]) -> float:
            before = read_bytes()
            command()
            return (read_bytes() - before) / rank

        begin = [str(file), "--k"]
        assert ranks_read(lambda: main(["fetch", device.url, "toy", "--to", *begin, "3"])) < 0.1
        assert ranks_read(lambda: main(["grow", *begin, "5"])) == pytest.approx(3, abs=0.1)
        assert ranks_read(lambda: main(["shrink", *begin, "4"])) == pytest.approx(4, abs=0.1)
        for command in (["status"], ["verify"], ["verify", "--repair"]):
            assert ranks_read(lambda: main([*command, str(file)])) == pytest.approx(4, abs=0.1)  # noqa: B023
        assert ranks_read(lambda: open_subset(file)) < 0.1  # it is mapped
        assert file.read_bytes() == device.subset(4)


def test_killed_while_it_grows_it_goes_on_from_there(
    device: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = fetched(device, tmp_path / "file", 2)
    device.hold = threading.Event()
    command = [sys.executable, "-m", "mdc_device", "grow", str(file), "--k", "5"]
    with subprocess.Popen(command) as process:
        assert device.held.wait(timeout=30)
        process.kill()
    device.hold.set()
    device.hold = None
    assert file.read_bytes() == device.subset(2)
    kept = files.part_of(file).stat().st_size
    for command in (["status"], ["verify"], ["verify", "--repair"]):  # what is unfinished is no damage
        assert main([*command, str(file)]) == 0
        told = capsys.readouterr().out
        assert "subset 2 of" in told
        assert (f"{file}.part has {kept} bytes" in told) == (command == ["status"])
    assert files.part_of(file).stat().st_size == kept
    assert main(["grow", str(file), "--k", "5"]) == 0
    assert file.read_bytes() == device.subset(5)
    assert device.ranges()[-1] == f"bytes={kept}-{len(device.subset(5)) - 1}"


def test_a_larger_growth_that_was_interrupted_serves_a_smaller_one(device: Any, tmp_path: Path) -> None:
    file = fetched(device, tmp_path / "file", 2)
    device.drop_after = [2 * device.info.rank_bytes + 5, 0, 0]
    assert main(["grow", str(file), "--k", "5", "--retries", "1"]) == 3
    assert open_subset(file).k == 2
    device.drop_after = []
    done = api.grow(file, 3, access=ACCESS)
    assert (done.received_bytes, file.read_bytes()) == (0, device.subset(3))


def test_growing_mends_what_is_damaged(device: Any, tmp_path: Path) -> None:
    file = fetched(device, tmp_path / "file", 3)
    data = bytearray(file.read_bytes())
    data[rankmajor.rank_range(device.info, 2)[0]] ^= 4
    file.write_bytes(data)
    with pytest.raises(DigestError, match=r"rank 2 .*--repair"):
        api.shrink(file, 2)
    assert file.read_bytes() == data
    done = api.grow(file, 4, access=ACCESS)
    assert (done.repaired_ranks, done.received_bytes) == ((2,), 2 * device.info.rank_bytes)
    assert file.read_bytes() == device.subset(4)


def test_a_server_that_ignores_ranges_spoils_nothing(device: Any, tmp_path: Path) -> None:
    file = fetched(device, tmp_path / "file", 2)
    device.ignore_ranges = True
    device.drop_after = [5000]
    assert main(["grow", str(file), "--k", "4", "--retries", "0"]) == 3
    assert open_subset(file).k == 2
    assert main(["grow", str(file), "--k", "4"]) == 0
    assert file.read_bytes() == device.subset(4)


def test_an_older_manifest_is_refused(
    device: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device.manifest["version"] = 3
    file = fetched(device, tmp_path / "file", 2)
    device.manifest["version"] = 2
    before = file.read_bytes()
    assert main(["fetch", device.url, "toy", "--to", str(file)]) == 5
    assert "this device has seen version 3" in capsys.readouterr().err
    assert file.read_bytes() == before
    device.manifest["version"] = 4
    assert main(["fetch", device.url, "toy", "--to", str(file)]) == 0
    assert state.load(file).version == 4  # type: ignore[union-attr]


@pytest.mark.parametrize(("field", "value"), [("version", 2), ("name", "cats")])
def test_what_was_not_asked_for_is_refused(device: Any, tmp_path: Path, field: str, value: object) -> None:
    """A manifest can be well signed and of another version, or of another set."""
    file = fetched(device, tmp_path / "file", 2)
    signed, device.manifest = device.manifest, {**device.manifest, field: value}
    device.versions[1] = device
    with pytest.raises(FormatError, match=r"of 'toy@1' was requested, but that of '(toy@2|cats@1)'"):
        api.grow(file, 3, access=ACCESS)
    device.manifest = signed
    api.grow(file, 3, access=ACCESS)
    assert file.read_bytes() == device.subset(3)


def test_another_set_under_the_same_version_is_refused(device: Any, tmp_path: Path) -> None:
    file = fetched(device, tmp_path / "file", 2)
    device.manifest["object"] = {**device.manifest["object"], "sha256": "0" * 64}
    with pytest.raises(FormatError, match=r"version 1 of .* differs"):
        api.grow(file, 3, access=ACCESS)


def test_a_set_published_again_with_other_images_is_not_mixed_in(device: Any, tmp_path: Path) -> None:
    file = fetched(device, tmp_path / "file", 2)
    first = replace(device, manifest=device.manifest)
    tiles = rankmajor.read(device.obj)[1].copy()
    tiles[0, 0, 0, 0, 0, 0] ^= 1
    device.obj = rankmajor.pack(tiles, device.info)
    digests = rankmajor.digests(device.obj, device.info)
    device.manifest = {
        **device.manifest,
        "version": 2,
        "rank_sha256": list(digests.ranks),
        "subset_sha256": list(digests.subsets),
        "object": {**device.manifest["object"], "sha256": digests.object},
    }
    with pytest.raises(RefusedError, match="404"):  # version 1 was withdrawn
        api.grow(file, 3, access=ACCESS)
    assert api.status(file).verified
    device.versions[1] = first
    device.requests.clear()
    api.grow(file, 3, access=ACCESS)
    assert file.read_bytes() == first.subset(3)
    assert all("toy@1/" in path or path.endswith("?set=toy@1") for path, _ in device.requests)
    api.fetch(device.url, "toy", file, k=3, access=ACCESS)
    assert file.read_bytes() == device.subset(3) != first.subset(3)


def test_wrong_directions_and_sizes(device: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = fetched(device, tmp_path / "file", 3)
    for command, k, message in (
        ("grow", 2, "subset 3 already"),
        ("shrink", 4, "is only subset 3"),
        ("grow", 6, r"k is 6: give a whole number 1..5"),
        ("shrink", 0, "k is 0"),
    ):
        assert main([command, str(file), "--k", str(k)]) == 2
        assert message in capsys.readouterr().err
    files.state_of(file).unlink()
    assert main(["grow", str(file), "--k", "4"]) == 2
    assert "fetch it again" in capsys.readouterr().err
    assert main(["shrink", str(file), "--k", "1"]) == 0
    assert file.read_bytes() == device.subset(1)


def test_a_damaged_state_says_what_to_do(device: Any, tmp_path: Path) -> None:
    file = fetched(device, tmp_path / "file", 3)
    for text in ("{", "[]", '{"state_version": 1}', '{"state_version": 2}'):
        files.state_of(file).write_text(text)
        with pytest.raises(FormatError, match=r"delete it and fetch|update"):
            api.grow(file, 4, access=ACCESS)
