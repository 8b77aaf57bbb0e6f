"""The readers in C and JavaScript, the safetensors package, curl and the device's client agree on every subset."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from mdc_core.delivery import rankmajor
from mdc_core.errors import FormatError
from mdc_device import api, files
from mdc_device.decode import open_subset
from tests.device.corpus import COUNT, corpus
from tests.device.live import Live, live_api
from tests.server.toyset import INFO

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).parents[2] / "examples"
Reader = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def in_c(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """The C reader, built with every warning an error."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("there is no C compiler")
    program = tmp_path_factory.mktemp("c") / "read_subset"
    options = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1"]
    subprocess.run([compiler, *options, "-o", program, EXAMPLES / "c/read_subset.c"], check=True, timeout=120)
    return lambda file, *pixels: ran([program, file, *(index for pixel in pixels for index in pixel)])


@pytest.fixture(scope="module")
def in_js() -> Reader:
    if (node := shutil.which("node")) is None:
        pytest.skip("there is no Node")
    cli = EXAMPLES / "js/cli.mjs"
    return lambda file, *pixels, manifest=(): ran(
        [node, cli, file, *manifest, *(word for pixel in pixels for word in ("--pixel", *pixel))]
    )


@pytest.fixture(params=["in_c", "in_js"])
def reader(request: pytest.FixtureRequest) -> Reader:
    found: Reader = request.getfixturevalue(request.param)
    return found


def ran(command: list[Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], check=False, capture_output=True, text=True, timeout=60
    )


def packed(info: rankmajor.SetInfo, k: int) -> bytes:
    tiles = np.random.default_rng(k).integers(0, 256, info.tile_shape(info.ipc), dtype=np.uint8)
    return rankmajor.subset(rankmajor.pack(tiles, info), info, k)


COLOUR = rankmajor.SetInfo(12, 2, ("cat", "dog"), (0.1, 0.0, -1e-7), (0.2, 1.0, 1e-05), 9, 3)
ODD_NAMES = ('a "b"', "c\\d", "\\", '"', "ä, ö", "狗", "🐕", "]", "e,f", "\n", '\\"', "\\\\")
SETS = {
    "colour": COLOUR,
    "grey": rankmajor.SetInfo(1, 1, ("one",), (0.5,), (0.25,), 1, 1),
    "odd names": dataclasses.replace(COLOUR, classes=ODD_NAMES),
    "a long header": dataclasses.replace(COLOUR, classes=tuple(f"class number {i}" for i in range(400))),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("k", [1, 12])
def test_all_read_the_same(tmp_path: Path, reader: Reader, name: str, k: int) -> None:
    info = SETS[name]
    k = min(k, info.ipc)
    file = tmp_path / "file"
    file.write_bytes(packed(info, k))
    with safe_open(file, framework="numpy") as opened:
        tiles = opened.get_tensor("tiles")
    draw = np.random.default_rng(0)
    pixels = [tuple(int(draw.integers(size)) for size in tiles.shape) for _ in range(5)]
    done = reader(file, *pixels)
    assert done.returncode == 0, done.stderr
    shape = " ".join(map(str, tiles.shape))
    sha256 = rankmajor.sha256(file.read_bytes())
    assert done.stdout.splitlines() == [
        f"k {k}",
        f"shape {shape}",
        f"sha256 {sha256}",
        *[f"pixel {tiles[pixel]}" for pixel in pixels],
    ]


REFUSED = "refused"
ALL_IN_JS = """
import { readFileSync, readdirSync } from "node:fs";
const [folder, module] = process.argv.slice(1);
const { FormatError, readSubset, sha256 } = await import(module);
const found = {};
for (const name of readdirSync(folder)) {
  try {
    const { k, shape, bytes } = readSubset(readFileSync(`${folder}/${name}`));
    found[name] = `k ${k}\\nshape ${shape.join(" ")}\\nsha256 ${await sha256(bytes)}\\n`;
  } catch (error) {
    found[name] = error instanceof FormatError ? "refused" : String(error);
  }
}
console.log(JSON.stringify(found));
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The corpus in a folder, and what Python says of each file: what a reader prints, or that it is refused."""
    folder, told = tmp_path_factory.mktemp("corpus"), {}
    for name, data in corpus():
        (folder / name).write_bytes(data)
        told[name] = in_python(data)
    return folder, told


def in_python(data: bytes) -> str:
    try:
        _, tiles = rankmajor.read(data)
    except FormatError:
        return REFUSED
    return f"k {len(tiles)}\nshape {' '.join(map(str, tiles.shape))}\nsha256 {rankmajor.sha256(data)}\n"


def test_the_corpus_is_one_and_the_same_of_good_and_bad_files(written: tuple[Path, dict[str, str]]) -> None:
    folder, told = written
    assert [(folder / name).read_bytes() for name in told] == [data for _, data in corpus()]
    assert all(answer != REFUSED for name, answer in told.items() if name.endswith("good"))
    refused = sum(answer == REFUSED for answer in told.values())
    assert len(told) == COUNT
    assert COUNT // 2 < refused < COUNT * 2 // 3
    assert len({name.partition("-")[2] for name, answer in told.items() if answer == REFUSED}) == 11
    for name, answer in told.items():  # what the format takes is a safetensors file
        if answer != REFUSED:
            with safe_open(folder / name, framework="numpy") as opened:
                assert opened.get_slice("tiles").get_dtype() == "U8"


def test_c_takes_and_refuses_what_python_does(written: tuple[Path, dict[str, str]], in_c: Reader) -> None:
    folder, told = written
    for name, answer in told.items():
        done = in_c(folder / name)
        assert (done.returncode, done.stdout) == ((5, "") if answer == REFUSED else (0, answer)), name


def test_javascript_takes_and_refuses_what_python_does(
    written: tuple[Path, dict[str, str]], in_js: Reader
) -> None:
    folder, told = written
    done = ran(
        ["node", "--input-type=module", "-e", ALL_IN_JS, folder, (EXAMPLES / "js/subset.mjs").as_uri()]
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == told


def test_the_sha256_in_c_is_right_for_every_padding(tmp_path: Path, in_c: Reader) -> None:
    """Files of 4096 + 1 to 4096 + 64 bytes: every number of bytes in the last block."""
    file = tmp_path / "file"
    for count in range(1, 65):
        info = rankmajor.SetInfo(1, 1, tuple(map(str, range(count))), (0.5,), (0.25,), 1, 1)
        file.write_bytes(packed(info, 1))
        assert file.stat().st_size == 4096 + count
        assert f"sha256 {rankmajor.sha256(file.read_bytes())}" in in_c(file).stdout


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_api(tmp_path_factory.mktemp("live")) as found:
        yield found


@pytest.mark.parametrize("k", range(1, INFO.ipc + 1))
def test_what_the_api_sends_is_what_all_read(
    live: Live, tmp_path: Path, in_c: Reader, in_js: Reader, k: int
) -> None:
    """curl, the device's client, safetensors, C and JavaScript: one sha256, and the same values."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    request = f"curl -sS --fail '{live.url}/subsets/{k}?set=toy' -H 'Authorization: Bearer {live.key}'"
    sha256 = ran(["sh", "-c", f"{request} | sha256sum"]).stdout.split()[0]
    file, kept = tmp_path / "toy.mdc", tmp_path / "curl"
    assert ran(["sh", "-c", f"{request} -o {kept}"]).returncode == 0
    manifest, _, done = api.fetch(live.url, "toy", file, k=k, access=api.Access(live.key))
    assert file.read_bytes() == kept.read_bytes() == live.subset(k)
    assert done.sha256 == manifest.digests.subsets[k - 1] == sha256
    with safe_open(kept, framework="numpy") as opened:
        tiles = opened.get_tensor("tiles")
    np.testing.assert_array_equal(tiles, open_subset(file).tiles)
    last = tuple(size - 1 for size in tiles.shape)
    shape = " ".join(map(str, tiles.shape))
    expected = [f"k {k}", f"shape {shape}", f"sha256 {sha256}", f"pixel {tiles[last]}"]
    assert in_c(kept, last).stdout.splitlines() == expected
    assert in_js(kept, last).stdout.splitlines() == expected
    assert in_js(kept, manifest=[files.manifest_of(file)]).returncode == 0


def edited(data: bytes, old: bytes, new: bytes) -> bytes:
    """The file with one text in its header replaced by another, its length kept."""
    size = int.from_bytes(data[:8], "little") + 8
    assert data[:size].count(old) == 1
    head = data[:size].replace(old, new).rstrip(b" ")
    return head.ljust(size) + data[size:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:7],
        lambda data: data[:4000],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: edited(data, b"rankmajor/1", b"rankmajor/2"),
        lambda data: edited(data, b'"ipc":"12"', b'"ipc":"2"'),
        lambda data: edited(data, b'"ipc":"12"', b'"ipc":"012"'),
        lambda data: edited(data, b'"ipc":"12"', b'"ipc": "12"'),
        lambda data: edited(data, b'"shape":[3', b'"shape":[4'),
        lambda data: edited(data, b'"shape":[3', b'"shape":[0'),
        lambda data: edited(data, b'"factor":"2"', b'"factor":"3"'),
        lambda data: edited(data, b'"factor":"2"', b'"factor":"0"'),
        lambda data: edited(data, b"cat", b'cat\\",\\"cow'),
        lambda data: edited(data, b'"U8"', b'"I8"'),
        lambda data: edited(data, b"]}}", b"]},}"),
        lambda data: edited(data, b"]}}", b"]}}."),
        lambda data: edited(data, b'"channels":"3"', b'"channels":"1"'),
        lambda data: edited(data, b'"image_size":"9"', b'"image_size":"99999999999999999999999"'),
        lambda data: data[:-5000],
        lambda data: (8184).to_bytes(8, "little") + data[8:4096].ljust(8184) + data[4096:],
    ],
)
def test_damage_is_refused(tmp_path: Path, reader: Reader, damage: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "file"
    file.write_bytes(damage(packed(COLOUR, 3)))
    done = reader(file)
    assert (done.returncode, done.stdout) == (5, "")
    assert "fetch it again" in done.stderr or "no rankmajor/1 file" in done.stderr


def test_javascript_names_the_ranks_that_are_damaged(device: Any, tmp_path: Path, in_js: Reader) -> None:
    file, manifest = tmp_path / "file", tmp_path / "manifest"
    manifest.write_text(json.dumps(device.manifest))
    data = bytearray(device.subset(4))
    file.write_bytes(data)
    assert in_js(file, manifest=[manifest]).returncode == 0
    for rank in (2, 4):
        data[rankmajor.rank_range(device.info, rank)[0]] ^= 1
    file.write_bytes(data)
    done = in_js(file, manifest=[manifest])
    assert done.returncode == 5
    assert "rank 2, 4 is not what the manifest promises" in done.stderr


def test_wrong_use(tmp_path: Path, reader: Reader) -> None:
    file = tmp_path / "file"
    file.write_bytes(packed(COLOUR, 1))
    assert reader(file, (1, 0, 0, 0, 0, 0)).returncode in (1, 2)
    assert reader(tmp_path / "none").returncode == 1
