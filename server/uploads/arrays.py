"""Inspect an npz: array headers and labels are read, pixels are not.

`mdc_core.data` reads whole arrays, for the worker. This module applies the same rules to headers, within the limits of
an upload.
"""

from __future__ import annotations

import math
import zipfile
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from mdc_core.config.settings import MAX_SIDE, MIN_SIDE, DataFacts
from mdc_core.data.layouts import after_hold_out, check_classes
from mdc_core.errors import DataError
from mdc_core.names import MAX_CLASSES, MAX_NAME, normalised
from server.uploads.members import UNREADABLE

MEMBERS = ("x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy", "classes.npy")
MAX_PIXEL_BYTES = 16 * 2**30
"""Maximum bytes of a split's images. A worker holds them in memory."""
MAX_LABEL_BYTES = 2**25
"""Maximum bytes of a split's labels: four million of 8 bytes."""
_MAX_HEADER = 10_000

Shape = tuple[int, ...]


def inspect_arrays(archive: zipfile.ZipFile, name: str) -> DataFacts:
    """Facts of a data set of arrays: x_train (M, H, H) or (M, H, H, ch) uint8, y_train (M,) of 0..C-1.

    x_test and y_test are optional, and so is `classes`, the C class names. Nothing is unpickled.

    Raises:
        DataError: an array is missing, unknown or unusable. The message names it.
    """
    present = {member.filename: member for member in archive.infolist()}
    for member in present:
        if member not in MEMBERS:
            raise DataError(f"member {member!r} is not one of {', '.join(MEMBERS)}: leave it out")
    for member in ("x_train.npy", "y_train.npy"):
        if member not in present:
            raise DataError(f"array {member!r} is missing: an npz needs x_train and y_train")
    if ("x_test.npy" in present) != ("y_test.npy" in present):
        raise DataError("only one of x_test.npy and y_test.npy is present: add the other, or leave out both")
    image_size, channels = _image_shape(archive, "train")
    counts = _class_counts(archive, "train", None)
    classes = _class_names(archive, len(counts)) if "classes.npy" in present else _numbered(len(counts))
    has_test = "x_test.npy" in present
    if has_test:
        if (tested := _image_shape(archive, "test")) != (image_size, channels):
            raise DataError(
                f"array 'x_test.npy' has images of side {tested[0]} with {tested[1]} channels, x_train.npy "
                f"of side {image_size} with {channels}: make them alike"
            )
        tests = sum(_class_counts(archive, "test", len(counts)))
    else:
        training = after_hold_out(counts, classes)
        tests, counts = sum(counts) - sum(training), training
    return DataFacts(
        name=name,
        channels=channels,
        image_size=image_size,
        classes=classes,
        smallest_class=min(counts),
        images=sum(counts),
        test_images=tests,
        held_out=not has_test,
    )


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(str(label) for label in range(count))


def _image_shape(archive: zipfile.ZipFile, split: str) -> tuple[int, int]:
    """Side and channels of a split's images. Checks that there are as many images as labels."""
    member = f"x_{split}.npy"
    shape, dtype, start = _header(archive, member)
    if dtype != np.uint8:
        raise DataError(f"array {member!r} is {dtype}: it must be uint8, 0..255")
    if not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))):
        raise DataError(f"array {member!r} has the shape {shape}: (M, H, H) or (M, H, H, ch) with ch 1 or 3")
    if shape[0] < 1:
        raise DataError(f"array {member!r} holds no image")
    if shape[1] != shape[2] or not MIN_SIDE <= shape[1] <= MAX_SIDE:
        raise DataError(
            f"array {member!r} has images of {shape[1]}×{shape[2]} pixels: squares of side "
            f"{MIN_SIDE}..{MAX_SIDE} are needed"
        )
    if (size := math.prod(shape)) > MAX_PIXEL_BYTES:
        raise DataError(f"array {member!r} has {size} bytes: at most {MAX_PIXEL_BYTES}")
    if archive.getinfo(member).file_size < start + size:
        raise DataError(f"array {member!r} is cut off: its shape {shape} takes {size} bytes")
    labels, _, _ = _header(archive, f"y_{split}.npy")
    if labels[:1] != shape[:1]:
        raise DataError(f"array {member!r} has {shape[0]} images, but y_{split}.npy has the shape {labels}")
    return shape[1], shape[3] if len(shape) == 4 else 1


def _class_counts(archive: zipfile.ZipFile, split: str, classes: int | None) -> list[int]:
    """Images per label 0..C-1, each at least 1. `classes` is C for a test split, None for training."""
    member = f"y_{split}.npy"
    shape, dtype, _ = _header(archive, member)
    if dtype.kind not in "iu" or not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        raise DataError(f"array {member!r} is {dtype} of shape {shape}: one whole number per image is needed")
    labels = _read(archive, member, shape, dtype, MAX_LABEL_BYTES).ravel()
    least, most = int(labels.min()), int(labels.max())
    limit = (classes or MAX_CLASSES) - 1
    if least < 0 or most > limit:
        raise DataError(f"array {member!r} has the labels {least}..{most}: they must be in 0..{limit}")
    counts = np.bincount(labels.astype(np.int64), minlength=classes or 0)
    missing = np.flatnonzero(counts == 0)
    if len(missing):
        raise DataError(
            f"array {member!r} has no image with the label {missing[0]}: every label "
            f"0..{len(counts) - 1} is needed"
        )
    if len(counts) < 2:
        raise DataError(f"array {member!r} has one label only: at least 2 classes are needed")
    return [int(count) for count in counts]


def _class_names(archive: zipfile.ZipFile, count: int) -> tuple[str, ...]:
    shape, dtype, _ = _header(archive, "classes.npy")
    if dtype.kind != "U" or shape != (count,):
        raise DataError(
            f"array 'classes.npy' is {dtype} of shape {shape}: it must hold {count} strings, one per label"
        )
    if dtype.itemsize > 4 * MAX_NAME:  # numpy stores every name with 4 bytes per character of the longest
        raise DataError(
            f"array 'classes.npy' has names of {dtype.itemsize // 4} characters: at most {MAX_NAME}"
        )
    read = _read(archive, "classes.npy", shape, dtype, MAX_LABEL_BYTES)
    names = tuple(normalised(str(name)) for name in read)
    if len(set(names)) != count:
        raise DataError("array 'classes.npy' has a name twice: name every class differently")
    check_classes(names)
    return names


def _header(archive: zipfile.ZipFile, member: str) -> tuple[Shape, np.dtype[Any], int]:
    """Shape and dtype of an array, and the offset of its data."""
    try:
        with archive.open(member) as file:
            return _read_header(file)
    except (*UNREADABLE, SyntaxError, TypeError) as error:
        raise DataError(f"array {member!r} cannot be read ({error}): write it with numpy.savez") from error


def _read_header(file: IO[bytes]) -> tuple[Shape, np.dtype[Any], int]:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version[0]}.{version[1]} of the npy format is not known")
    shape, _, dtype = readers[version](file, max_header_size=_MAX_HEADER)
    return tuple(int(side) for side in shape), dtype, file.tell()


def _read(
    archive: zipfile.ZipFile, member: str, shape: Shape, dtype: np.dtype[Any], most: int
) -> npt.NDArray[Any]:
    """Read an array whose header announced this shape and dtype."""
    if (size := math.prod(shape) * dtype.itemsize) > most:
        raise DataError(f"array {member!r} has {size} bytes: at most {most}")
    try:
        with archive.open(member) as file:
            array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
            return array
    except (*UNREADABLE, SyntaxError, TypeError) as error:
        raise DataError(f"array {member!r} cannot be read ({error}): write it with numpy.savez") from error
