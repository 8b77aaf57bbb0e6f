"""Inspect a zip of images: image headers are read, no pixel is decoded."""

from __future__ import annotations

import io
import zipfile
from pathlib import PurePosixPath

from PIL import Image, UnidentifiedImageError

from mdc_core.config.settings import DataFacts
from mdc_core.data.layouts import Header, ImageCounts, check_classes, passed_over, read_header
from mdc_core.errors import DataError
from mdc_core.names import MAX_CLASSES, normalised
from server.uploads.members import UNREADABLE

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
MAX_IMAGE_BYTES = 32 * 2**20
"""Maximum size of one image file."""
MAX_READ_BYTES = 4 * 2**30
"""Maximum bytes to read for all headers. A header may be long, yet compress to almost nothing."""
_HEADER_BYTES = 2**14
"""Bytes read first, enough for nearly all headers. If they are not, the whole file is read (WebP needs it)."""
_UNREADABLE_IMAGE = (
    *UNREADABLE,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    SyntaxError,
    TypeError,
)
_LAYOUT = "images belong into train/<class>/ and test/<class>/"

Tree = dict[str, dict[str, list[zipfile.ZipInfo]]]
"""Image members by split and class."""


def inspect_images(archive: zipfile.ZipFile, name: str) -> DataFacts:
    """Facts of a data set of images in `train/<class>/*` and, if given, `test/<class>/*`.

    Every image is read up to its size and colour mode. `image_size` is the default of jobs (see
    `presets.default_side`). `channels` is 1 if all images are grey.

    Raises:
        DataError: a member is not an image or in no class, a class is empty, or there are fewer than two classes.
    """
    tree, ignored = _tree(archive.infolist())
    classes = _check_classes(tree)
    counts = {split: tuple(len(found[label]) for label in classes) for split, found in tree.items()}
    found = ImageCounts(classes, counts["train"], counts.get("test"), ignored)
    return found.facts(name, _headers(archive, tree))


def _tree(members: list[zipfile.ZipInfo]) -> tuple[Tree, int]:
    """The members by split and class, and the number of ignored files and folders.

    A class without images is included, so that an error can name it.
    """
    tree: Tree = {}
    ignored = set()
    for member in members:
        parts = PurePosixPath(member.filename).parts
        if skipped := passed_over(parts):
            ignored.add(skipped)
            continue
        if parts[0] not in ("train", "test") or (not member.is_dir() and len(parts) < 3):
            raise DataError(f"member {member.filename!r} is in no class: {_LAYOUT}")
        if member.is_dir():
            if len(parts) > 1:
                tree.setdefault(parts[0], {}).setdefault(normalised(parts[1]), [])
            continue
        if PurePosixPath(member.filename).suffix.lower() not in EXTENSIONS:
            raise DataError(
                f"member {member.filename!r} is not an image: its name must end in "
                f"{', '.join(sorted(EXTENSIONS))}"
            )
        if not 0 < member.file_size <= MAX_IMAGE_BYTES:
            raise DataError(f"member {member.filename!r} has {member.file_size} bytes: 1..{MAX_IMAGE_BYTES}")
        tree.setdefault(parts[0], {}).setdefault(normalised(parts[1]), []).append(member)
    return tree, len(ignored)


def _check_classes(tree: Tree) -> tuple[str, ...]:
    """The class names, in the order of their labels."""
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
    if len(train) < 2:
        raise DataError(f"the archive has {len(train)} class in train/: 2..{MAX_CLASSES} are needed")
    labels = tuple(sorted(train))
    check_classes(labels)
    return labels


def _headers(archive: zipfile.ZipFile, tree: Tree) -> list[Header]:
    """The header of every image."""
    headers, left = [], MAX_READ_BYTES
    for member in (member for found in tree.values() for members in found.values() for member in members):
        header, size = _read_header(archive, member)
        headers.append(header)
        left -= size
        if left < 0:
            raise DataError(
                f"the headers of the images, up to member {member.filename!r}, have more than {MAX_READ_BYTES} "
                "bytes: remove thumbnails and metadata from the images, or send fewer"
            )
    return headers


def _read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[Header, int]:
    """An image's header, and the number of bytes read for it."""
    try:
        with archive.open(member) as file:
            start = file.read(_HEADER_BYTES)
            try:
                return read_header(io.BytesIO(start)), len(start)
            except Exception:  # the header may be longer; a real error comes again with the whole file
                start += file.read()
        return read_header(io.BytesIO(start)), len(start)
    except UnidentifiedImageError as error:
        raise DataError(
            f"member {member.filename!r} is not a PNG, JPEG, WebP or BMP image: replace or remove it"
        ) from error
    except _UNREADABLE_IMAGE as error:
        raise DataError(
            f"member {member.filename!r} cannot be read ({error}): replace or remove it"
        ) from error
