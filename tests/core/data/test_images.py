"""Folders and zips of images: pixels and labels come through, and every fault names its file or class."""

from __future__ import annotations

import stat
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from mdc_core.data.images import read_folder, read_zip, survey_folder, survey_zip
from mdc_core.data.splits import Splits
from mdc_core.errors import ConfigError, DataError
from tests.core.image_files import encoded, overlapping, pixels, small_set, write_folder, write_zip


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _read(kind: str, base: Path, files: dict[str, bytes], image_size: int | None = None) -> Splits:
    """The files, read as a folder or as a zip."""
    if kind == "folder":
        return read_folder(write_folder(base, files), image_size)
    return read_zip(write_zip(base / "a.zip", files), image_size)


@pytest.mark.parametrize("kind", ["folder", "zip", "zip in a folder", "zip by Windows"])
def test_pixels_and_labels_come_through(tmp_path: Path, kind: str) -> None:
    files = small_set()
    if kind == "folder":
        splits = read_folder(write_folder(tmp_path, files))
    else:
        rename = {
            "zip": lambda name: name,
            "zip in a folder": lambda name: f"my set/{name}",
            "zip by Windows": lambda name: name.replace("/", "\\"),
        }[kind]
        splits = read_zip(
            write_zip(tmp_path / "a.zip", {rename(name): content for name, content in files.items()})
        )
    assert splits.classes == ("cat", "dog")
    expected = np.stack([pixels(seed) for seed in range(6)]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(splits.train[0].numpy(), expected)
    assert splits.train[1].tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(
        splits.test[0].numpy(), np.stack([pixels(6), pixels(7)]).transpose(0, 3, 1, 2)
    )
    assert splits.test[1].tolist() == [0, 1]


def test_hidden_and_foreign_files_are_ignored(tmp_path: Path) -> None:
    plain = read_zip(write_zip(tmp_path / "plain.zip", small_set()))
    litter = {
        "__MACOSX/train/cat/._0.png": b"junk",
        "train/.DS_Store": b"junk",
        "train/cat/.hidden/x.png": b"junk",
        "train/.git/config": b"junk",
        "README.txt": b"hello",
        "validation/cat/0.png": b"junk",
    }
    littered = read_zip(write_zip(tmp_path / "littered.zip", small_set() | litter))
    folder = read_folder(write_folder(tmp_path / "folder", small_set() | litter))
    for other in (littered, folder):
        assert other.classes == plain.classes
        assert torch.equal(other.train[0], plain.train[0])
        assert torch.equal(other.test[0], plain.test[0])


@pytest.mark.parametrize("first_grey", [False, True])
def test_grey_only_when_every_image_is(tmp_path: Path, first_grey: bool) -> None:
    grey = read_folder(write_folder(tmp_path / "grey", small_set(channels=1)))
    assert grey.train[0].shape == (6, 1, 8, 8)
    np.testing.assert_array_equal(grey.train[0][2, 0].numpy(), pixels(2, channels=1))

    odd = "train/dog/2.png" if first_grey else "train/cat/0.png"
    position = 5 if first_grey else 0
    mixed = small_set(channels=1) | {odd: encoded(pixels(99))}
    splits = read_folder(write_folder(tmp_path / "mixed", mixed))
    assert splits.train[0].shape == (6, 3, 8, 8)
    np.testing.assert_array_equal(splits.train[0][position].numpy(), pixels(99).transpose(2, 0, 1))
    for channel in range(3):
        np.testing.assert_array_equal(splits.train[0][2, channel].numpy(), pixels(2, channels=1))
    assert splits.test[0].shape == (2, 3, 8, 8)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP"])
def test_every_format_is_decoded(tmp_path: Path, kind: str) -> None:
    content = encoded(pixels(99), kind)
    splits = read_folder(write_folder(tmp_path, small_set() | {"train/cat/0.png": content}))
    decoded = np.asarray(Image.open(tmp_path / "train/cat/0.png").convert("RGB"))
    np.testing.assert_array_equal(splits.train[0][0].numpy(), decoded.transpose(2, 0, 1))


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    splits = read_folder(write_folder(tmp_path, small_set(channels=1) | {"train/cat/0.png": encoded(deep)}))
    np.testing.assert_array_equal(splits.train[0][0, 0].numpy(), deep // 256)


@pytest.mark.parametrize(("height", "width"), [(31, 17), (17, 31), (40, 40), (8, 9), (5, 13), (16, 16)])
def test_resize_and_crop_equal_torchvision(tmp_path: Path, height: int, width: int) -> None:
    array = pixels(3, height, width)
    files = small_set() | {"train/cat/0.png": encoded(array)}
    splits = read_folder(write_folder(tmp_path, files), image_size=16)
    resized = tv.center_crop(tv.resize(Image.fromarray(array), [16], tv.InterpolationMode.BILINEAR), [16, 16])
    np.testing.assert_array_equal(splits.train[0][0].numpy(), np.asarray(resized).transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_side_is_the_median_of_the_short_sides_whatever_image_comes_first(
    tmp_path: Path, kind: str
) -> None:
    sides = [300, 20, 22, 12, 21, 300, 5, 20]  # sorted: 5 12 20 20 | 21 22 300 300
    files = {
        name: encoded(pixels(seed, side, side + seed))
        for seed, (name, side) in enumerate(zip(small_set(), sides, strict=True))
    }
    splits = _read(kind, tmp_path, files)
    assert splits.train[0].shape == (6, 3, 20, 20)
    assert splits.test[0].shape == (2, 3, 20, 20)


@pytest.mark.parametrize(("preset", "side"), [(None, 64), ("photos", 64), ("imagenet-10", 224)])
def test_large_images_get_64_pixels_unless_the_preset_is_made_for_more(
    tmp_path: Path, preset: str | None, side: int
) -> None:
    files = {name: encoded(pixels(seed, 230, 240)) for seed, name in enumerate(small_set())}
    write_folder(tmp_path, files)
    assert survey_folder(tmp_path, preset=preset).image_size == side
    assert survey_folder(tmp_path, preset=preset).own_side == 230
    assert read_folder(tmp_path, preset=preset).train[0].shape[2:] == (side, side)
    assert survey_folder(tmp_path, 48, preset).image_size == 48


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_survey_counts_what_is_passed_over(tmp_path: Path, kind: str) -> None:
    litter = {
        "__MACOSX/train/cat/._0.png": b"junk",  # one folder, whatever is in it
        "__MACOSX/train/cat/._1.png": b"junk",
        "train/.DS_Store": b"junk",
        "train/cat/.hidden/x.png": b"junk",
        "train/cat/.hidden/y.png": b"junk",
        "README.txt": b"hello",
        "validation/cat/0.png": b"junk",
        "validation/cat/1.png": b"junk",
    }
    files = small_set() | litter
    if kind == "folder":
        facts = survey_folder(write_folder(tmp_path, files))
    else:
        facts = survey_zip(write_zip(tmp_path / "a.zip", files))
    assert (facts.ignored, facts.images, facts.test_images) == (5, 6, 2)


def test_a_survey_decodes_nothing_and_still_names_a_file_without_a_header(tmp_path: Path) -> None:
    cut = encoded(pixels(0, 40, 40))[:200]
    write_folder(tmp_path / "cut", small_set() | {"train/dog/1.png": cut})
    assert survey_folder(tmp_path / "cut").own_side == 8
    with pytest.raises(DataError, match=r"train/dog/1\.png cannot be read"):
        read_folder(tmp_path / "cut")
    write_folder(tmp_path / "junk", small_set() | {"train/dog/1.png": b"junk"})
    with pytest.raises(DataError, match=r"train/dog/1\.png is not a PNG, JPEG"):
        survey_folder(tmp_path / "junk")


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_without_a_test_split_a_tenth_of_each_class_is_held_out(tmp_path: Path, kind: str) -> None:
    counts = {"a": 30, "b": 10, "c": 2}
    names = [
        (label, f"train/{name}/{i:02}.png") for label, name in enumerate(counts) for i in range(counts[name])
    ]
    # The pixels of an image are its number, so that it can be found again.
    files = {name: encoded(np.full((8, 8), number, np.uint8)) for number, (_, name) in enumerate(names)}
    splits = _read(kind, tmp_path, files)
    assert torch.bincount(splits.test[1]).tolist() == [3, 1, 1]
    seen = []
    for images, labels in (splits.train, splits.test):
        numbers = images[:, 0, 0, 0].tolist()
        assert [names[number][0] for number in numbers] == labels.tolist()
        seen += numbers
    assert sorted(seen) == list(range(len(names)))


BROKEN_IMAGES = {
    "text": (b"this is not an image", "is not a PNG, JPEG, WebP or BMP"),
    "empty": (b"", "is not a PNG, JPEG, WebP or BMP"),
    "GIF": (encoded(pixels(0), "GIF"), "is not a PNG, JPEG, WebP or BMP"),
    "truncated PNG": (encoded(pixels(0, 64, 64))[:6000], "cannot be read"),
    "truncated JPEG": (encoded(pixels(0, 64, 64), "JPEG")[:1500], "cannot be read"),
    "81 megapixels": (_png_header(9000, 9000), "more than the limit of 64000000"),
    "100 megapixels": (_png_header(10_000, 10_000), "cannot be read .*100000000 pixels|more than the limit"),
    "900 megapixels": (_png_header(30_000, 30_000), "cannot be read .*900000000 pixels"),
    "thin": (encoded(pixels(0, 1, 40_000)), "too long and thin"),
}


@pytest.mark.parametrize("fault", BROKEN_IMAGES)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_broken_image_is_named(tmp_path: Path, fault: str, kind: str) -> None:
    content, message = BROKEN_IMAGES[fault]
    files = small_set() | {"train/dog/1.png": content}
    with pytest.raises(DataError, match=rf"train/dog/1\.png.*({message})"):
        _read(kind, tmp_path, files, 64)


def test_the_pixel_limit_does_not_depend_on_warnings(tmp_path: Path) -> None:
    files = small_set() | {"train/dog/1.png": _png_header(10_000, 10_000)}
    write_folder(tmp_path, files)
    with warnings.catch_warnings(action="ignore"), pytest.raises(DataError, match="limit of 64000000"):
        read_folder(tmp_path)


def test_a_file_over_the_byte_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdc_core.data.images.MAX_FILE_BYTES", 1000)
    files = small_set() | {"train/dog/1.png": encoded(pixels(0)) + bytes(1000)}
    for read, path in (
        (read_folder, write_folder(tmp_path / "folder", files)),
        (read_zip, write_zip(tmp_path / "a.zip", files)),
    ):
        with pytest.raises(DataError, match=r"train/dog/1\.png.*limit of 1000"):
            read(path)


WRONG_TREES = {
    "no train": ({"cat/0.png": b""}, "no train/<class>/ folder"),
    "image outside a class": ({"train/0.png": b""}, r"train/0\.png is in no class"),
    "class only in test": ({"test/bird/0.png": b""}, "'bird' is in test, but not in train"),
    "class not in test": ({"train/bird/0.png": b""}, "'bird' has no image in test"),
}


@pytest.mark.parametrize("fault", WRONG_TREES)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_wrong_layout_is_named(tmp_path: Path, fault: str, kind: str) -> None:
    extra, message = WRONG_TREES[fault]
    files = extra if fault == "no train" else small_set() | extra
    with pytest.raises(DataError, match=message):
        _read(kind, tmp_path, files)


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    (write_folder(tmp_path, small_set()) / "train/bird").mkdir()
    with pytest.raises(DataError, match="'bird' has no image in train"):
        read_folder(tmp_path)
    archive = write_zip(tmp_path / "a.zip", small_set() | {"train/bird/": b""})
    with pytest.raises(DataError, match="'bird' has no image in train"):
        read_zip(archive)


def test_a_class_too_small_to_hold_out_is_named(tmp_path: Path) -> None:
    files = {name: content for name, content in small_set().items() if name.startswith("train/")}
    files["train/bird/0.png"] = encoded(pixels(0))
    with pytest.raises(DataError, match=r"'bird' has 1 training image"):
        read_folder(write_folder(tmp_path, files))


@pytest.mark.parametrize("name", ["/etc/x.png", "C:/x.png", "\\x.png", "train/../../x.png", "..\\x.png"])
def test_unsafe_member_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"member .*x\.png' has (an absolute name|'\.\.' in its name)"):
        read_zip(write_zip(tmp_path / "a.zip", small_set() | {name: encoded(pixels(0))}))


def test_links_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", small_set())
    link = zipfile.ZipInfo("train/cat/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match=r"member 'train/cat/link\.png' is a link"):
        read_zip(path)


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", small_set())
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag of the first member in the archive's directory
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"member 'train/cat/0\.png' is encrypted"):
        read_zip(path)


@pytest.mark.parametrize("which", ["first", "last"])
def test_members_that_share_bytes_are_refused(tmp_path: Path, which: str) -> None:
    """As in a zip bomb, where every member's data begin with the next one's header."""
    path = overlapping(write_zip(tmp_path / "a.zip", small_set()), which)
    for read in (read_zip, survey_zip):
        with pytest.raises(DataError, match="overlap"):
            read(path)


def test_damaged_members_are_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", small_set())
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 12] ^= 0xFF  # stored, so this breaks the checksum of the first member
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train/cat/0\.png cannot be read"):
        read_zip(path)


@pytest.mark.parametrize("size", [3, 0, -1, 1025])
def test_image_size_has_limits(tmp_path: Path, size: int) -> None:
    with pytest.raises(ConfigError, match=rf"image_size is {size}: it must be 4\.\.1024"):
        read_folder(write_folder(tmp_path, small_set()), size)


def test_a_tiny_first_image_is_named(tmp_path: Path) -> None:
    files = small_set() | {"train/cat/0.png": encoded(pixels(0, 3, 9))}
    with pytest.raises(DataError, match=r"train/cat/0\.png.*9×3 pixels"):
        read_folder(write_folder(tmp_path, files))


def test_class_folders_may_be_links(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", small_set())
    (tmp_path / "set/train").mkdir(parents=True)
    for name in ("cat", "dog"):
        (tmp_path / "set/train" / name).symlink_to(tmp_path / "elsewhere/train" / name)
    splits = read_folder(tmp_path / "set")
    assert len(splits.train[0]) + len(splits.test[0]) == 6


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_an_error_of_the_data_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path = write_zip(tmp_path / "a.zip", small_set())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(
        content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content
    )
    try:
        splits = read_zip(path)
    except DataError:
        return
    assert splits.train[0].dtype == torch.uint8
    assert len(splits.train[0]) == len(splits.train[1])
