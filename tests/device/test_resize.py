"""Growing and shrinking in place: byte-equal with a fresh fetch, whatever happens between two steps."""

from __future__ import annotations

import io
import itertools
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdc_core import rankmajor
from mdc_core.errors import ConfigError, DigestError, FormatError
from mdc_core.manifest import Manifest, parse_manifest
from mdc_device import api, files, inplace, state
from mdc_device.cli import main
from mdc_device.decode import open_subset
from mdc_device.errors import RefusedError

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


def steps(kind: str, file: Any, k: int, manifest: Manifest, whole: bytes) -> Iterator[str]:
    """The steps of growing to or shrinking to k, with bytes from memory."""

    def fill(start: int, end: int) -> None:
        file.seek(start)
        file.write(whole[start:end])

    return inplace.grow(file, k, manifest, fill) if kind == "grow" else inplace.shrink(file, k, manifest)


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 5), (4, 5), (5, 4), (5, 1), (3, 2)])
def test_every_crash_point_is_recovered(device: Any, tmp_path: Path, old: int, new: int) -> None:
    """Stop after every step, then open, repeat the command, and repair: each must find a right file."""
    original = fetched(device, tmp_path / "original", old)
    kind = "grow" if new > old else "shrink"
    whole, reached = device.subset(5), []
    manifest = parse_manifest(device.manifest)
    for stop in itertools.count():
        file = copied(original, tmp_path / "file")
        with file.open("r+b") as opened:
            done = list(itertools.islice(steps(kind, opened, new, manifest, whole), stop))
        if stop > len(done):
            break
        reached.append(done[-1] if done else "nothing")
        left = file.read_bytes()

        k = open_subset(file).k
        assert k in (old, new)
        np.testing.assert_array_equal(open_subset(file).tiles, rankmajor.read(device.subset(k))[1])

        device.requests.clear()
        api.grow(file, new, access=ACCESS) if kind == "grow" else api.shrink(file, new)
        assert file.read_bytes() == device.subset(new)
        # The payload of the growth that was interrupted is not fetched twice.
        assert len(device.ranges()) == (kind == "grow" and reached[-1] == "nothing")

        file.write_bytes(left)
        state.remember_size(file, old)
        found = api.verify(file, repair=True, access=ACCESS)
        assert file.read_bytes() == device.subset(found.k)
        assert found.k == k
    expected = {
        "grow": ["payload", "digests checked", "payload synced", "header", "header synced"],
        "shrink": ["header", "header synced", "cut", "cut synced"],
    }
    assert reached == ["nothing", *expected[kind]]


class Storage(io.BytesIO):
    """A file whose changes are durable once it is synced; a power cut may lose or tear each of the others."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.durable = content
        self.pending: list[tuple[int, bytes | None]] = []

    def write(self, data: Any) -> int:
        self.pending.append((self.tell(), bytes(data)))
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        assert size is not None
        self.pending.append((size, None))
        return super().truncate(size)

    def sync(self) -> None:
        self.durable, self.pending = self.getvalue(), []

    def after_power_cuts(self) -> Iterator[bytes]:
        """What may be found: every change not made, partly made, or made, in every combination."""
        for parts in itertools.product((None, "torn", "made"), repeat=len(self.pending)):
            content = bytearray(self.durable)
            for (position, data), part in zip(self.pending, parts, strict=True):
                if data is None:
                    del content[position if part == "made" else len(content) :]
                elif part is not None:
                    # A header is torn where it hurts: between the two numbers that tell its size.
                    half = max(data.find(b'"data_offsets"'), len(data) // 20)
                    kept = data if part == "made" else data[:half]
                    content.extend(bytes(max(position - len(content), 0)))
                    content[position : position + len(kept)] = kept
            yield bytes(content)


@pytest.mark.parametrize(("old", "new"), [(1, 3), (4, 5), (5, 4), (5, 1)])
def test_after_a_power_cut_no_header_promises_what_is_not_there(
    device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: int, new: int
) -> None:
    manifest = parse_manifest(device.manifest)
    file = fetched(device, tmp_path / "file", old)
    storage = Storage(file.read_bytes())
    monkeypatch.setattr(files, "sync", lambda opened: opened.sync())
    found = set()
    for _ in steps("grow" if new > old else "shrink", storage, new, manifest, device.subset(5)):
        found |= set(storage.after_power_cuts())
    monkeypatch.undo()
    assert len(found) >= 4
    device.requests.clear()
    for content in found:
        try:
            info, k = rankmajor.read_header(content)
        except FormatError:
            k = old  # torn while it was written: the state remembers, and the ranks are all there
        else:
            assert info == device.info
            assert k in (old, new)
        end = rankmajor.subset_size(device.info, k)
        assert content[4096:end] == device.subset(k)[4096:]
        file.write_bytes(content)
        state.remember_size(file, old)
        api.verify(file, repair=True, access=ACCESS)
        assert file.read_bytes() == device.subset(k)
    assert device.requests == []


def test_killed_while_it_grows_it_goes_on_from_there(device: Any, tmp_path: Path) -> None:
    file = fetched(device, tmp_path / "file", 2)
    device.hold = threading.Event()
    command = [sys.executable, "-m", "mdc_device", "grow", str(file), "--k", "5"]
    with subprocess.Popen(command) as process:
        assert device.held.wait(timeout=30)
        process.kill()
    device.hold.set()
    device.hold = None
    assert open_subset(file).k == 2
    kept = file.stat().st_size
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
    with pytest.raises(FormatError, match=r"asked for 'toy@1', but sent the manifest of '(toy@2|cats@1)'"):
        api.grow(file, 3, access=ACCESS)
    device.manifest = signed
    api.grow(file, 3, access=ACCESS)
    assert file.read_bytes() == device.subset(3)


def test_another_set_under_the_same_version_is_refused(device: Any, tmp_path: Path) -> None:
    file = fetched(device, tmp_path / "file", 2)
    device.manifest["object"] = {**device.manifest["object"], "sha256": "0" * 64}
    with pytest.raises(FormatError, match="another version 1"):
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
    assert all("toy@1/" in path or path.endswith("?set=toy%401") for path, _ in device.requests)
    api.fetch(device.url, "toy", file, k=3, access=ACCESS)
    assert file.read_bytes() == device.subset(3) != first.subset(3)


def test_wrong_directions_and_sizes(device: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = fetched(device, tmp_path / "file", 3)
    for command, k, message in (
        ("grow", 2, "subset 3 already"),
        ("shrink", 4, "is subset 3"),
        ("grow", 6, r"k is 6: give a whole number 1..5"),
        ("shrink", 0, "k is 0"),
    ):
        assert main([command, str(file), "--k", str(k)]) == 2
        assert message in capsys.readouterr().err
    with files.opened(file), pytest.raises(ConfigError, match="another process"):
        api.shrink(file, 1)
    state.state_of(file).unlink()
    assert main(["grow", str(file), "--k", "4"]) == 2
    assert "fetch it again" in capsys.readouterr().err
    assert main(["shrink", str(file), "--k", "1"]) == 0
    assert file.read_bytes() == device.subset(1)


def test_a_damaged_state_says_what_to_do(device: Any, tmp_path: Path) -> None:
    file = fetched(device, tmp_path / "file", 3)
    for text in ("{", "[]", '{"state_version": 1}', '{"state_version": 2}'):
        state.state_of(file).write_text(text)
        with pytest.raises(FormatError, match=r"delete it and fetch|update"):
            api.grow(file, 4, access=ACCESS)
