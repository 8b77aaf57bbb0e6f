"""Rules for users' images that need only names and headers; readers and the service share them. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from PIL import Image

from mdc_core.config.presets import default_side
from mdc_core.config.settings import MIN_SIDE, DataFacts
from mdc_core.errors import DataError
from mdc_core.names import MAX_CLASSES, MAX_NAME, name_fault

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Decoders that may read a user's file."""
MAX_PIXELS = 64_000_000
"""Upper limit of an image in pixels; below Pillow's own limit, so that its warning never appears."""
HOLD_OUT = 0.1
"""Share of every class that becomes the test split if a user's data have none."""


@dataclass(frozen=True)
class Header:
    """The properties in an image file's header."""

    short_side: int
    """Pixels, 4 or more."""
    grey: bool
    """Whether the image is grey."""


def read_header(file: IO[bytes]) -> Header:
    """Read the header of an image file. Raises Pillow's errors, and `ValueError` for too many or too few pixels."""
    with Image.open(file, formats=FORMATS) as image:
        check_pixels(image)
        if min(image.size) < MIN_SIDE:
            raise ValueError(
                f"{image.width}×{image.height} pixels: at least {MIN_SIDE} each way, or set image_size"
            )
        return Header(min(image.size), is_grey(image.mode))


def check_pixels(image: Image.Image) -> None:
    """Raise `ValueError` if an image is too large to decode."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}×{image.height} pixels, more than the limit of {MAX_PIXELS}")


def is_grey(mode: str) -> bool:
    """Whether images of a Pillow mode are grey."""
    return mode in ("1", "L", "LA") or mode.startswith("I")


def own_side(headers: Sequence[Header]) -> int:
    """The original side of the images: the lower median of their short sides."""
    return statistics.median_low([header.short_side for header in headers])


def passed_over(parts: Sequence[str]) -> tuple[str, ...] | None:
    """The name's parts up to the hidden file or folder that makes it ignored; None if it is not ignored."""
    for depth, part in enumerate(parts, 1):
        if part.startswith(".") or part == "__MACOSX":
            return tuple(parts[:depth])
    return None


def held_out_of(label: str, count: int, share: float = HOLD_OUT) -> int:
    """How many of a class's `count` images to hold out: `share` of them, leaving at least one on either side.

    Raises `DataError` if there are fewer than two.
    """
    if count < 2:
        raise DataError(
            f"class {label!r} has {count} training image and there is no test split to test it with: add images of "
            f"the class (at least 2), or a test split"
        )
    return min(max(1, int(count * share + 0.5)), count - 1)


def after_hold_out(counts: Sequence[int], classes: Sequence[str]) -> list[int]:
    """Training images per class that remain after the hold-out."""
    return [count - held_out_of(label, count) for label, count in zip(classes, counts, strict=True)]


def check_classes(classes: Sequence[str]) -> None:
    """Raise `DataError` if there are too few or too many classes, or a name is invalid."""
    if len(classes) < 2:
        raise DataError(f"there is {len(classes)} class ({', '.join(classes)[:MAX_NAME]}): give at least two")
    if len(classes) > MAX_CLASSES:
        raise DataError(f"there are {len(classes)} classes: give at most {MAX_CLASSES}")
    for name in classes:
        if fault := name_fault(name):
            raise DataError(f"invalid class: {fault}")


@dataclass(frozen=True)
class ImageCounts:
    """Number of images by class, in the order of the labels."""

    classes: tuple[str, ...]
    train: tuple[int, ...]
    """Images of each class, before any are held out."""
    test: tuple[int, ...] | None
    """The same for the test split; None if there is none, so that a part of every class is held out."""
    ignored: int
    """Number of files and folders ignored."""

    def facts(
        self, name: str, headers: Sequence[Header], image_size: int | None = None, preset: str | None = None
    ) -> DataFacts:
        """The facts of the data set with these headers; by default, `default_side` decides the side.

        Raises `DataError` if there is only one class, or one is too small for a hold-out.
        """
        check_classes(self.classes)
        train = after_hold_out(self.train, self.classes) if self.test is None else self.train
        side = own_side(headers)
        return DataFacts(
            name=name,
            channels=1 if all(header.grey for header in headers) else 3,
            image_size=default_side(side, preset) if image_size is None else image_size,
            classes=self.classes,
            smallest_class=min(train),
            images=sum(train),
            test_images=sum(self.train) - sum(train) if self.test is None else sum(self.test),
            held_out=self.test is None,
            ignored=self.ignored,
            own_side=side,
        )
