"""Users' own images by their names and headers, without a pixel: what readers and the service go by. Knows no torch."""

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
"""Decoders that a user's file may reach."""
MAX_PIXELS = 64_000_000
"""Largest image that is decoded; below Pillow's own limit, so that its warning is always an error here."""
HOLD_OUT = 0.1
"""Share of every class that becomes the test split when a user's data have none."""


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before its pixels."""

    short_side: int
    """Pixels, 4 or more."""
    grey: bool
    """Whether it has no colours."""


def read_header(file: IO[bytes]) -> Header:
    """The header of an image file; raises what Pillow raises, and `ValueError` for too many pixels or too few."""
    with Image.open(file, formats=FORMATS) as image:
        check_pixels(image)
        if min(image.size) < MIN_SIDE:
            raise ValueError(
                f"{image.width}×{image.height} pixels: at least {MIN_SIDE} each way, or set image_size"
            )
        return Header(min(image.size), is_grey(image.mode))


def check_pixels(image: Image.Image) -> None:
    """Raise `ValueError` for an image that is too large to be decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}×{image.height} pixels, more than the limit of {MAX_PIXELS}")


def is_grey(mode: str) -> bool:
    """Whether images of a Pillow mode have no colours."""
    return mode in ("1", "L", "LA") or mode.startswith("I")


def own_side(headers: Sequence[Header]) -> int:
    """The side that images have by themselves: the (lower) median of their short sides, whatever their order."""
    return statistics.median_low([header.short_side for header in headers])


def passed_over(parts: Sequence[str]) -> tuple[str, ...] | None:
    """The first parts of a name, up to the hidden file or folder because of which it is passed over; None: none."""
    for depth, part in enumerate(parts, 1):
        if part.startswith(".") or part == "__MACOSX":
            return tuple(parts[:depth])
    return None


def held_out_of(label: str, count: int, share: float = HOLD_OUT) -> int:
    """How many of a class's `count` images are held out: `share` of them, and one at least on either side.

    Raises `DataError` when there are fewer than two.
    """
    if count < 2:
        raise DataError(
            f"class {label!r} has {count} training image and there is no test split, so it would have to be in "
            f"both: add images of the class (at least 2), or a test split"
        )
    return min(max(1, int(count * share + 0.5)), count - 1)


def after_hold_out(counts: Sequence[int], classes: Sequence[str]) -> list[int]:
    """Training images per class that are left once a test split has been taken from them."""
    return [count - held_out_of(label, count) for label, count in zip(classes, counts, strict=True)]


def check_classes(classes: Sequence[str]) -> None:
    """Raise `DataError` when there is nothing to tell apart, or too much, or a name that is none."""
    if len(classes) < 2:
        raise DataError(
            f"there is {len(classes)} class ({', '.join(classes)[:MAX_NAME]}): it takes at least two"
        )
    if len(classes) > MAX_CLASSES:
        raise DataError(f"there are {len(classes)} classes: at most {MAX_CLASSES} are accepted")
    for name in classes:
        if fault := name_fault(name):
            raise DataError(f"of the classes, {fault}")


@dataclass(frozen=True)
class Found:
    """Images by class, as they were found; classes in the order of their labels."""

    classes: tuple[str, ...]
    train: tuple[int, ...]
    """Images of each class, before any are held out."""
    test: tuple[int, ...] | None
    """The same of the test split; None: there is none, and a part of every class is held out."""
    ignored: int
    """Files and folders that were passed over."""

    def facts(
        self, name: str, headers: Sequence[Header], image_size: int | None = None, preset: str | None = None
    ) -> DataFacts:
        """What is known of the data set with these headers; without `image_size` the side is `default_side`'s.

        Raises `DataError` for a single class, and for one that is too small to hold out from.
        """
        check_classes(self.classes)
        kept = after_hold_out(self.train, self.classes) if self.test is None else self.train
        side = own_side(headers)
        return DataFacts(
            name=name,
            channels=1 if all(header.grey for header in headers) else 3,
            image_size=default_side(side, preset) if image_size is None else image_size,
            classes=self.classes,
            smallest_class=min(kept),
            images=sum(kept),
            test_images=sum(self.train) - sum(kept) if self.test is None else sum(self.test),
            held_out=self.test is None,
            ignored=self.ignored,
            own_side=side,
        )
