"""Read users' folders and zips of images as tensors. The input is untrusted.

Layout: `train/<class>/*` and, optionally, `test/<class>/*`. Deeper folders belong to the class above them. In a zip,
everything may lie in one more folder. Anything beside train and test is ignored, as are hidden files and `__MACOSX`.
Class names, sorted, are the labels 0..C-1. A survey reads names and headers, but decodes nothing.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mdc_core.config.presets import default_side
from mdc_core.config.settings import MAX_SIDE, MIN_SIDE, DataFacts
from mdc_core.data.allocate import allocate
from mdc_core.data.layouts import (
    FORMATS,
    MAX_PIXELS,
    Header,
    ImageCounts,
    check_pixels,
    is_grey,
    own_side,
    passed_over,
    read_header,
)
from mdc_core.data.splits import Splits, hold_out
from mdc_core.data.zips import check_apart
from mdc_core.errors import ConfigError, DataError
from mdc_core.names import normalised

MAX_FILE_BYTES = 128 * 2**20
"""Upper limit of an image file in bytes."""
_DECODED_AHEAD = 256

T = TypeVar("T")
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Member:
    """One image file: its name as the user knows it, and how to open it."""

    name: str
    open: Callable[[], IO[bytes]]


@dataclass(frozen=True)
class Tree:
    """Image files by split and class. Empty classes are included, so that errors can name them."""

    splits: dict[str, dict[str, list[Member]]]
    ignored: int
    """Number of files and folders ignored."""


def survey_folder(path: Path, image_size: int | None = None, preset: str | None = None) -> DataFacts:
    """What `read_folder` would read, from file names and headers alone; same arguments and errors."""
    return _surveyed(_folder_tree(path, "test"), path, path.resolve().name, image_size, preset)


def survey_zip(path: Path, image_size: int | None = None, preset: str | None = None) -> DataFacts:
    """Like `survey_folder`, for a zip."""
    with open_zip(path) as archive:
        return _surveyed(_zip_tree(archive, path), path, path.stem, image_size, preset)


def read_folder(
    path: Path, image_size: int | None = None, preset: str | None = None, *, test: str = "test"
) -> Splits:
    """Read the images of `path`/train and `path`/`test` (layout: see above) as squares of side `image_size`.

    Without a test folder, a tenth of every class is held out (see `hold_out`). By default, the side is the median of
    the images' short sides, at most 64, or the size that `preset` is made for (see `presets.default_side`). Class
    folders may be links.

    Raises:
        DataError: a file or class is unusable; the message names it.
        ConfigError: `image_size` is out of range.
    """
    return _decoded(_folder_tree(path, test), path, image_size, preset, test)


def read_zip(path: Path, image_size: int | None = None, preset: str | None = None) -> Splits:
    """Like `read_folder`, for a zip. Members are read one by one, and nothing is written to disk.

    Raises:
        DataError: the zip, a member or a class is unusable; the message names it. An absolute name, a name with `..`,
            a link or an encrypted member makes the whole zip unusable.
        ConfigError: `image_size` is out of range.
    """
    with open_zip(path) as archive:
        return _decoded(_zip_tree(archive, path), path, image_size, preset, "test")


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open the zip at `path`. `DataError` if it is none, its directory is damaged, or members share bytes."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory fails in many ways, always through the file's fault
        raise DataError(f"{path} cannot be read as a zip ({error}): make the archive again") from error
    check_apart(archive, str(path))
    return archive


def is_npz(path: Path) -> bool:
    """Whether a zip holds arrays rather than images. `DataError` if it is not a zip."""
    with open_zip(path) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def _folder_tree(path: Path, test: str) -> Tree:
    """The members of each split that exists."""
    try:
        beside = [entry for entry in path.iterdir() if entry.name not in ("train", test)]
        trees = {split: _classes_of(path / split) for split in ("train", test) if (path / split).is_dir()}
    except OSError as error:
        raise DataError(f"{path} cannot be listed ({error}): check that it can be read") from error
    ignored = len(beside) + sum(tree[1] for tree in trees.values())
    return Tree({split: tree[0] for split, tree in trees.items()}, ignored)


def _classes_of(folder: Path) -> tuple[dict[str, list[Member]], int]:
    """The members of each class folder, and the number of files and folders ignored.

    Links to folders are followed for class folders only, not below: so there are no cycles.
    """
    classes: dict[str, list[Member]] = {}
    ignored: set[tuple[str, ...]] = set()
    for entry in sorted(folder.iterdir()):
        if passed_over([entry.name]):
            ignored.add((entry.name,))
            continue
        if not entry.is_dir():
            raise _unlabelled(str(entry))
        members = classes.setdefault(normalised(entry.name), [])
        files = sorted(Path(base, name) for base, _, names in os.walk(entry) for name in names)
        for file in files:
            if skipped := passed_over(file.relative_to(entry).parts):
                ignored.add((entry.name, *skipped))
            else:
                members.append(Member(str(file), partial(_open_file, file)))
    return classes, len(ignored)


def _open_file(path: Path) -> IO[bytes]:
    _check_bytes(path.stat().st_size)
    return path.open("rb")


def _zip_tree(archive: zipfile.ZipFile, path: Path) -> Tree:
    """The members by split and class, after checking every member's name and kind."""
    entries = [(_safe_parts(info, path), info) for info in archive.infolist()]
    ignored = {skipped for parts, _ in entries if (skipped := passed_over(parts))}
    entries = [(parts, info) for parts, info in entries if parts and not passed_over(parts)]
    tops = {parts[0] for parts, _ in entries}
    if len(tops) == 1 and not tops & {"train", "test"}:
        entries = [(parts[1:], info) for parts, info in entries if len(parts) > 1]
    splits: dict[str, dict[str, list[Member]]] = {}
    for parts, info in entries:
        if parts[0] not in ("train", "test"):
            ignored.add((parts[0],))
            continue
        classes = splits.setdefault(parts[0], {})
        name = f"{path}: {info.filename}"
        label = normalised(parts[1]) if len(parts) > 1 else ""
        if info.is_dir():
            if len(parts) > 1:
                classes.setdefault(label, [])
        elif len(parts) < 3:
            raise _unlabelled(name)
        else:
            classes.setdefault(label, []).append(Member(name, partial(_open_member, archive, info)))
    for classes in splits.values():
        for members in classes.values():
            members.sort(key=lambda member: member.name)
    return Tree(splits, len(ignored))


def _safe_parts(info: zipfile.ZipInfo, path: Path) -> list[str]:
    """The parts of a member's name. `DataError` unless it is a plain file or folder below the archive's root."""
    name = info.filename.replace("\\", "/")
    parts = name.split("/")
    if name.startswith("/") or parts[0].endswith(":"):
        fault = "has an absolute name"
    elif ".." in parts:
        fault = "has '..' in its name"
    elif stat.S_ISLNK(info.external_attr >> 16):
        fault = "is a link"
    elif info.flag_bits & 0x1:
        fault = "is encrypted"
    else:
        return [part for part in parts if part not in ("", ".")]
    raise DataError(f"{path}: member {info.filename!r} {fault}: zip plain files, without a password")


def _open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    _check_bytes(info.file_size)  # reading never yields more than this, whatever the compressed data contain
    return archive.open(info)


def _check_bytes(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{size} bytes are more than the limit of {MAX_FILE_BYTES}")


def _unlabelled(name: str) -> DataError:
    return DataError(f"{name} is in no class: images belong into train/<class>/ and test/<class>/")


def _surveyed(tree: Tree, path: Path, name: str, image_size: int | None, preset: str | None) -> DataFacts:
    """The facts of the data set, after checking its classes and the header of every image."""
    _check_side(image_size)
    classes = _checked_classes(tree, path)
    counts = {split: tuple(len(found[label]) for label in classes) for split, found in tree.splits.items()}
    images = ImageCounts(classes, counts["train"], counts.get("test"), tree.ignored)
    return images.facts(name, _headers(tree), image_size, preset)


def _decoded(tree: Tree, path: Path, image_size: int | None, preset: str | None, test: str) -> Splits:
    """Check the classes, divide the files into two splits, and decode all into one tensor, which is then cut."""
    _check_side(image_size)
    classes = _checked_classes(tree, path)
    train, labels = _flat(tree.splits["train"], classes)
    if test in tree.splits:
        held, held_labels = _flat(tree.splits[test], classes)
    else:
        train_at, held_at = hold_out(labels, classes)
        held, held_labels = [train[i] for i in held_at.tolist()], labels[held_at]
        train, labels = [train[i] for i in train_at.tolist()], labels[train_at]
    side = image_size if image_size is not None else default_side(own_side(_headers(tree)), preset)
    images = _decode_all([*train, *held], side)
    return Splits(classes, (images[: len(train)], labels), (images[len(train) :], held_labels))


def _checked_classes(tree: Tree, path: Path) -> tuple[str, ...]:
    """The class names in the order of their labels, after checking that every split has all of them."""
    if not tree.splits.get("train"):
        raise DataError(f"{path} has no train/<class>/ folder: the layout is train/<class>/*, test/<class>/*")
    classes = tuple(sorted(tree.splits["train"]))
    for split, found in tree.splits.items():
        if unknown := sorted(set(found) - set(classes)):
            raise DataError(f"{path}: class {unknown[0]!r} is in {split}, but not in train: remove or add it")
        if empty := [name for name in classes if not found.get(name)]:
            raise DataError(
                f"{path}: class {empty[0]!r} has no image in {split}: add some, or remove the class"
            )
    return classes


def _check_side(image_size: int | None) -> None:
    if image_size is not None and not MIN_SIDE <= image_size <= MAX_SIDE:
        raise ConfigError(f"image_size is {image_size}: it must be {MIN_SIDE}..{MAX_SIDE} pixels")


def _flat(found: dict[str, list[Member]], classes: tuple[str, ...]) -> tuple[list[Member], Tensor]:
    """All members, class by class, and their labels."""
    counts = torch.tensor([len(found[name]) for name in classes])
    return [member for name in classes for member in found[name]], torch.arange(
        len(classes)
    ).repeat_interleave(counts)


def _headers(tree: Tree) -> list[Header]:
    """The header of every image."""
    every = (member for found in tree.splits.values() for members in found.values() for member in members)
    return [_opened(member, read_header) for member in every]


def _decode_all(members: Sequence[Member], side: int) -> Tensor:
    """All images as one tensor (M, ch, side, side), uint8: ch is 1 only when every image is grey."""
    images = allocate((len(members), 1, side, side))
    decode = partial(_opened, use=partial(_pixels, side=side))
    # Threads, because Pillow releases the interpreter lock while decoding. Chunks, because map() would decode
    # everything before the first image is copied.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(members), _DECODED_AHEAD):
            chunk = members[start : start + _DECODED_AHEAD]
            for position, pixels in enumerate(pool.map(decode, chunk), start):
                if len(pixels) > images.shape[1]:  # the first colour image: all before it are grey
                    images = _coloured(images, start, len(pixels))
                images[position] = pixels
    return torch.from_numpy(images)


def _coloured(grey: Pixels, filled: int, channels: int) -> Pixels:
    """Repeat grey images over `channels` channels; also copies the chunk after the first `filled` images."""
    images = allocate((len(grey), channels, *grey.shape[2:]))
    for start in range(0, filled + _DECODED_AHEAD, _DECODED_AHEAD):
        images[start : start + _DECODED_AHEAD] = grey[start : start + _DECODED_AHEAD]
    return images


def _opened(member: Member, use: Callable[[IO[bytes]], T]) -> T:
    """Call `use` with the opened file; any error names the file."""
    try:
        with member.open() as file:
            return use(file)
    except UnidentifiedImageError as error:
        raise DataError(
            f"{member.name} is not a PNG, JPEG, WebP or BMP image: replace or remove it"
        ) from error
    except Exception as error:  # decoders fail on hostile bytes in many ways, always through the file's fault
        raise DataError(f"{member.name} cannot be read ({error}): replace or remove it") from error


def _pixels(file: IO[bytes], side: int) -> Pixels:
    """Resize the short side to `side` with antialiasing, and cut out the centre: (1 or 3, side, side)."""
    with Image.open(io.BytesIO(file.read()), formats=FORMATS) as opened:
        check_pixels(opened)
        image = _grey_or_rgb(opened)
    short, long = min(image.size), max(image.size)
    if short != side:
        long = int(side * long / short)
        if side * long > MAX_PIXELS:
            raise ValueError(
                f"{image.width}×{image.height} pixels are too long and thin for a side of {side}"
            )
        size = (side, long) if image.width <= image.height else (long, side)
        image = image.resize(size, Image.Resampling.BILINEAR)
    if long != side:
        left, top = round((image.width - side) / 2), round((image.height - side) / 2)
        image = image.crop((left, top, left + side, top + side))
    pixels: Pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    """Convert to mode L or RGB, dropping transparency."""
    if image.mode.startswith("I"):  # 16 bits per pixel; Pillow would clip them at 255 instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("L" if is_grey(image.mode) else "RGB")
