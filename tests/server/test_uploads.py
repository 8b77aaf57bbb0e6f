"""Inspection of archives: what is learnt of good ones, and that bad ones are named."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mdc_core.errors import DataError
from server.uploads import images as image_rules
from server.uploads import members as member_rules
from server.uploads.inspect import inspect_apart, inspect_upload
from tests.server.archives import arrays, image, images, packed_info, zipped


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "upload"


def refused(path: Path, content: bytes) -> str:
    """What the upload is refused with."""
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        inspect_upload(path, "toy")
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (zipped(images(4, test=2)), "zip"),
        (zipped(images(13)), "zip"),
        (zipped(images(25, mode="L")), "zip"),
        (arrays(), "npz"),
        (arrays(x_train=np.zeros((6, 9, 9, 3), np.uint8), classes=np.array(["a", "b"])), "npz"),
        (arrays(x_test=np.zeros((2, 8, 8), np.uint8), y_test=np.array([0, 1])), "npz"),
    ],
)
def test_the_facts_are_those_of_the_loaded_data(path: Path, content: bytes, kind: str) -> None:
    """The oracle is the loader of the worker, which decodes every pixel."""
    data = pytest.importorskip("mdc_core.data.load")
    path.write_bytes(content)
    found, facts = inspect_upload(path, "toy")
    assert found == kind
    assert facts == data.survey(str(path)).model_copy(update={"name": "toy"})
    unread = {"name": "toy", "held_out": facts.held_out, "own_side": facts.own_side}
    assert facts == data.load(str(path), path.parent).facts().model_copy(update=unread)


def test_a_process_apart_finds_the_same(path: Path) -> None:
    for good in (zipped(images(4, test=2)), arrays()):
        path.write_bytes(good)
        assert inspect_apart(path, "toy") == inspect_upload(path, "toy")
    message = refused(path, zipped({"train/é/0.png": b"no image"}))
    with pytest.raises(DataError) as caught:
        inspect_apart(path, "toy")
    assert str(caught.value) == message
    path.unlink()
    with pytest.raises(RuntimeError, match="FileNotFoundError"):
        inspect_apart(path, "toy")


def test_a_file_that_the_api_takes_is_not_too_large_for_the_loader() -> None:
    assert image_rules.MAX_IMAGE_BYTES <= pytest.importorskip("mdc_core.data.images").MAX_FILE_BYTES


def test_grey_needs_every_image_and_the_side_is_the_median_up_to_64(path: Path) -> None:
    sides = {"train/cat/0.png": (300, 250), "train/dog/0.png": (90, 100), "train/dog/1.png": (80, 70)}
    members = {**images(2, mode="L"), **{name: image(*size, "L") for name, size in sides.items()}}
    path.write_bytes(zipped(members))
    facts = inspect_upload(path, "toy")[1]
    assert (facts.channels, facts.own_side, facts.image_size, facts.classes) == (1, 70, 64, ("cat", "dog"))
    path.write_bytes(zipped({**members, "train/cat/1.png": image(9, 9)}))
    facts = inspect_upload(path, "toy")[1]
    assert (facts.channels, facts.own_side) == (3, 70)


def test_long_headers_are_read_to_their_end_but_not_without_limit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = image()
    chunk = b"tEXt" + b"a\0" + bytes(50_000)
    chunk = struct.pack(">L", len(chunk) - 4) + chunk + struct.pack(">L", zlib.crc32(chunk))
    long = long[:33] + chunk * 2 + long[33:]
    webp = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(webp, "WEBP", lossless=True)
    assert len(webp.getvalue()) > image_rules._HEADER_BYTES
    path.write_bytes(zipped({**images(2), "train/cat/0.png": long, "train/dog/0.webp": webp.getvalue()}))
    assert inspect_upload(path, "toy")[1].images == 5 - 2
    monkeypatch.setattr(image_rules, "MAX_READ_BYTES", 1000)
    assert "more than 1000 bytes" in refused(path, path.read_bytes())


def test_what_file_managers_add_is_passed_over(path: Path) -> None:
    extra = {"__MACOSX/train/cat/._0.png": b"x", ".DS_Store": b"x", "train/cat/.hidden": b"x", "train/": b""}
    path.write_bytes(zipped({**images(), **extra}))
    facts = inspect_upload(path, "toy")[1]
    assert (facts.smallest_class, facts.ignored) == (4 - 1, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_every_allowed_format_is_read(path: Path, kind: str) -> None:
    suffix = {"JPEG": "jpg"}.get(kind, kind.lower())
    members = {f"train/{label}/{i}.{suffix.upper()}": image(kind=kind) for label in "ab" for i in range(2)}
    path.write_bytes(zipped(members))
    assert inspect_upload(path, "toy")[1].image_size == 8


BAD_MEMBERS: list[tuple[bytes, str, str]] = [
    (zipped({**images(), "/train/cat/x.png": image()}), "/train/cat/x.png", "absolute"),
    (zipped({**images(), "C:/train/x.png": image()}), "C:/train/x.png", "absolute"),
    (zipped({**images(), "train/../../x.png": image()}), "train/../../x.png", "'..'"),
    (zipped({**images(), "train\\cat\\x.png": image()}), "cat", "backslash"),
    (zipped({**images(), "train/cat/\n.png": image()}), "train/cat", "control"),
    (zipped({**images(), "train//x.png": image()}), "train//x.png", "nothing between"),
    (zipped({**images(), "train/cat/" + "x" * 600: image()}), "train/cat/xxx", "610 characters"),
    (zipped({**images(), "cat/0.png": image()}), "cat/0.png", "no class"),
    (zipped({**images(), "train/0.png": image()}), "train/0.png", "no class"),
    (zipped({**images(), "valid/cat/0.png": image()}), "valid/cat/0.png", "no class"),
    (zipped({**images(), "train/cat/x.gif": image(kind="GIF")}), "train/cat/x.gif", ".webp"),
    (zipped({**images(), "train/cat/readme.txt": b"hi"}), "train/cat/readme.txt", ".png"),
    (zipped({**images(), "train/cat/0.png": image(kind="GIF")}), "train/cat/0.png", "not a PNG"),
    (zipped({**images(), "train/cat/0.png": image()[:20]}), "train/cat/0.png", "cannot be read"),
    (zipped({**images(), "train/cat/0.png": image(3, 8)}), "train/cat/0.png", "3×8"),
    (zipped({**images(), "train/cat/0.png": b""}), "train/cat/0.png", "0 bytes"),
    (zipped({**images(), "train/cat/0.png": bytes(2 * 2**20)}), "train/cat/0.png", "expands"),
    (zipped({**images(), "train/cow/": b""}), "cow", "no image in train/"),
    (zipped({**images(4, test=1), "test/cow/0.png": image()}), "cow", "not in train/"),
    (zipped({**images(), "test/cat/0.png": image()}), "dog", "no image in test/"),
    (zipped({**images(4), "train/cow/0.png": image()}), "cow", "1 training image"),
    (zipped({"train/cat/0.png": image(), "train/cat/1.png": image()}), "1 class", "2.."),
    (zipped({}), "train/<class>/", "no train"),
    (zipped(images(), zipfile.ZIP_BZIP2), "train/cat/0.png", "another method"),
    (packed_info("train/cat/0.png", external_attr=(stat.S_IFLNK | 0o777) << 16), "train/cat/0.png", "link"),
]


@pytest.mark.parametrize(("content", "name", "told"), BAD_MEMBERS)
def test_a_bad_member_or_class_is_named(path: Path, content: bytes, name: str, told: str) -> None:
    message = refused(path, content)
    assert name in message
    assert told in message


@pytest.mark.parametrize("side", [8_001, 9_500, 60_000])
def test_an_image_of_too_many_pixels_is_named_by_its_header(path: Path, side: int) -> None:
    bitmap = bytearray(image(kind="BMP"))
    struct.pack_into("<LL", bitmap, 18, side, side)
    message = refused(path, zipped({**images(), "train/cat/0.bmp": bytes(bitmap)}))
    assert "train/cat/0.bmp" in message
    assert "pixels" in message


def test_encrypted_members_are_refused(path: Path) -> None:
    content = bytearray(zipped({"train/cat/0.png": image()}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    assert "encrypted" in refused(path, bytes(content))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for _ in range(2):
            archive.writestr("train/cat/0.png", image())
    assert "twice" in refused(path, buffer.getvalue())


def test_too_many_members_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_rules, "MAX_MEMBERS", 7)
    assert "8 members, at most 7" in refused(path, zipped(images(4)))


def test_a_directory_that_is_too_large_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the end of the archive claims of it: here it claims little, and much."""
    content = zipped(images(4))
    end = content.rindex(b"PK\x05\x06")
    directory_bytes = struct.unpack_from("<L", content, end + 12)[0]
    monkeypatch.setattr(member_rules, "MAX_DIRECTORY_BYTES", directory_bytes - 1)
    assert f"directory has {directory_bytes} bytes" in refused(path, content)
    liar = bytearray(content)
    struct.pack_into("<L", liar, end + 12, 2**32 - 2)
    assert refused(path, bytes(liar))


BAD_ARRAYS: list[tuple[dict[str, Any], str, str]] = [
    ({"x_train": None}, "x_train", "missing"),
    ({"y_train": None}, "y_train", "missing"),
    ({"x_valid": np.zeros(3)}, "x_valid", "leave it out"),
    ({"x_test": np.zeros((1, 8, 8), np.uint8)}, "y_test", "only one"),
    ({"x_train": np.zeros((6, 8, 8))}, "x_train", "float64"),
    ({"x_train": np.zeros((6, 8, 9), np.uint8)}, "x_train", "8×9"),
    ({"x_train": np.zeros((6, 3, 3), np.uint8)}, "x_train", "4..1024"),
    ({"x_train": np.zeros((6, 8, 8, 2), np.uint8)}, "x_train", "ch 1 or 3"),
    ({"x_train": np.zeros((6, 64), np.uint8)}, "x_train", "(6, 64)"),
    ({"x_train": np.zeros((0, 8, 8), np.uint8)}, "x_train", "no image"),
    ({"x_train": np.zeros((5, 8, 8), np.uint8)}, "x_train", "5 images"),
    ({"y_train": np.array([0, 1, 0, 1, 0, 1.5])}, "y_train", "float64"),
    ({"y_train": np.array([0, 1, 0, 1, 0, -1])}, "y_train", "-1..1"),
    ({"y_train": np.array([0, 2, 0, 2, 0, 2])}, "y_train", "label 1"),
    ({"y_train": np.array([0, 1, 0, 1, 0, 2**40])}, "y_train", "1099511627776"),
    ({"y_train": np.zeros(6, int)}, "y_train", "one label"),
    ({"y_train": np.array([[0, 1]] * 6)}, "y_train", "(6, 2)"),
    ({"y_train": np.array([0, 0, 0, 0, 0, 1])}, "'1'", "1 training image"),
    ({"y_train": np.array([{}] * 6, object)}, "y_train", "object"),
    ({"classes": np.array(["a"])}, "classes", "2 strings"),
    ({"classes": np.array(["a", "a"])}, "classes", "twice"),
    ({"classes": np.array([1, 2])}, "classes", "int64"),
    ({"x_test": np.zeros((2, 9, 9), np.uint8), "y_test": np.array([0, 1])}, "x_test", "side 9"),
    ({"x_test": np.zeros((2, 8, 8), np.uint8), "y_test": np.array([0, 5])}, "y_test", "0..1"),
]


@pytest.mark.parametrize(("changes", "name", "told"), BAD_ARRAYS)
def test_a_bad_array_is_named(path: Path, changes: dict[str, Any], name: str, told: str) -> None:
    message = refused(path, arrays(**changes))
    assert name in message
    assert told in message


def test_an_array_that_is_shorter_than_its_header_says_is_named(path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((6, 8, 8), np.uint8))
    y = io.BytesIO()
    np.save(y, np.array([0, 1, 0, 1, 0, 1]))
    short = zipped({"x_train.npy": buffer.getvalue()[:-10], "y_train.npy": y.getvalue()})
    assert "x_train.npy' is cut off" in refused(path, short)
    short = zipped({"x_train.npy": buffer.getvalue(), "y_train.npy": y.getvalue()[:-10]})
    assert "y_train.npy' cannot be read" in refused(path, short)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_an_error_of_ours_or_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(data.draw(st.sampled_from([zipped(images(2)), arrays()])))
    path = tmp_path_factory.getbasetemp() / "damaged"
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(DataError):
        kind, facts = inspect_upload(path, "toy")
        assert kind in ("zip", "npz")
        assert len(facts.classes) >= 2
