"""What a zip of images tells of itself without a pixel being decoded."""

from __future__ import annotations

import io
import zipfile
from pathlib import PurePosixPath

from PIL import Image, UnidentifiedImageError

from mdc_core.config import DataFacts
from mdc_core.errors import DataError
from server.uploads.members import UNREADABLE

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Decoders that a user's file may reach."""
MAX_IMAGE_BYTES = 32 * 2**20
"""Size of one image file."""
MAX_PIXELS = 64_000_000
"""Pixels of one image."""
MAX_CLASSES = 10_000
LARGEST_SIDE = 224
"""Larger images are made smaller when they are loaded."""
SMALLEST_SIDE = 4
HELD_OUT = 0.1
"""Share of every class that becomes the test split when the archive has none."""
_HEADER_BYTES = 2**20
_UNREADABLE_IMAGE = (
    *UNREADABLE,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    SyntaxError,
    TypeError,
)
_GREY_MODES = frozenset({"1", "L", "LA"})
_LAYOUT = "images belong into train/<class>/ and test/<class>/"

Tree = dict[str, dict[str, list[zipfile.ZipInfo]]]
"""Image members by split and class."""


def inspect_images(archive: zipfile.ZipFile, name: str) -> DataFacts:
    """Facts of a data set of images in `train/<class>/*` and, if given, `test/<class>/*`.

    The first image of each class is read up to its size and colour mode. `image_size` is the short side of
    the very first, at most 224; `channels` is 1 when all of them are grey.

    Raises:
        DataError: a member is no image, or in no class; a class is empty; there are fewer than two.
    """
    tree = _tree(archive.infolist())
    classes = _check_classes(tree)
    sizes: list[tuple[int, int]] = []
    grey = True
    for label in classes:
        first = min(tree["train"][label], key=lambda member: member.filename)
        size, mode = _read_header(archive, first)
        sizes.append(size)
        grey = grey and (mode in _GREY_MODES or mode.startswith("I"))
    counts = [len(tree["train"][label]) for label in classes]
    kept = after_hold_out(counts, classes, has_test="test" in tree)
    return DataFacts(
        name=name,
        channels=1 if grey else 3,
        image_size=min(*sizes[0], LARGEST_SIDE),
        classes=classes,
        smallest_class=min(kept),
        images=sum(kept),
    )


def after_hold_out(counts: list[int], classes: tuple[str, ...], *, has_test: bool) -> list[int]:
    """Training images per class that are left once a test split has been taken from them where there is none.

    Raises `DataError` when a class has only one image to be in both.
    """
    if has_test:
        return counts
    for count, label in zip(counts, classes, strict=True):
        if count < 2:
            raise DataError(
                f"class {label!r} has {count} training image and there is no test split, so it would have "
                "to be in both: add images of the class (at least 2), or a test split"
            )
    return [count - min(max(1, int(count * HELD_OUT + 0.5)), count - 1) for count in counts]


def _tree(members: list[zipfile.ZipInfo]) -> Tree:
    """The members by split and class; a class that is only a folder is kept, so that it can be named."""
    tree: Tree = {}
    for member in members:
        parts = PurePosixPath(member.filename).parts
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue  # what file managers leave in archives; the loader passes over them as well
        if parts[0] not in ("train", "test") or (not member.is_dir() and len(parts) < 3):
            raise DataError(f"member {member.filename!r} is in no class: {_LAYOUT}")
        if member.is_dir():
            if len(parts) > 1:
                tree.setdefault(parts[0], {}).setdefault(parts[1], [])
            continue
        if PurePosixPath(member.filename).suffix.lower() not in EXTENSIONS:
            raise DataError(
                f"member {member.filename!r} is no image: its name has to end in "
                f"{', '.join(sorted(EXTENSIONS))}"
            )
        if not 0 < member.file_size <= MAX_IMAGE_BYTES:
            raise DataError(f"member {member.filename!r} has {member.file_size} bytes: 1..{MAX_IMAGE_BYTES}")
        tree.setdefault(parts[0], {}).setdefault(parts[1], []).append(member)
    return tree


def _check_classes(tree: Tree) -> tuple[str, ...]:
    """The class names in the order of their labels."""
    train = tree.get("train", {})
    if not train:
        raise DataError(f"the archive has no train/<class>/ folder: {_LAYOUT}")
    for split, classes in tree.items():
        for label, members in classes.items():
            if not members:
                raise DataError(f"class {label!r} has no image in {split}/: add some, or remove the folder")
            if label not in train:
                raise DataError(
                    f"class {label!r} is in {split}/, but not in train/: add it there, or remove it"
                )
    for label in train:
        if "test" in tree and label not in tree["test"]:
            raise DataError(f"class {label!r} has no image in test/: add some, or send no test/ at all")
    if not 2 <= len(train) <= MAX_CLASSES:
        raise DataError(f"the archive has {len(train)} class in train/: 2..{MAX_CLASSES} are needed")
    return tuple(sorted(train))


def _read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, int], str]:
    """Size in pixels and colour mode of an image."""
    try:
        with archive.open(member) as file:
            start = file.read(_HEADER_BYTES)
        with Image.open(io.BytesIO(start), formats=FORMATS) as image:
            size, mode = image.size, image.mode
    except UnidentifiedImageError as error:
        raise DataError(
            f"member {member.filename!r} is not a PNG, JPEG, WebP or BMP image: replace or remove it"
        ) from error
    except _UNREADABLE_IMAGE as error:
        raise DataError(
            f"member {member.filename!r} cannot be read ({error}): replace or remove it"
        ) from error
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(f"member {member.filename!r} has {size[0]}×{size[1]} pixels: at most {MAX_PIXELS}")
    if min(size) < SMALLEST_SIDE:
        raise DataError(
            f"member {member.filename!r} has {size[0]}×{size[1]} pixels: at least {SMALLEST_SIDE} each way"
        )
    return size, mode
