"""Real data: uint8 images in memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from mdc_core.compute.batching import gpu_free
from mdc_core.compute.cuda_graph import to_device
from mdc_core.config.settings import MAX_SIDE, MIN_SIDE, DataFacts
from mdc_core.data.layouts import check_classes
from mdc_core.data.normalisation import Normalisation
from mdc_core.errors import DataError
from mdc_core.system.memory import DATA_SHARE

_LEAST_STD = 1e-3


@dataclass(frozen=True, eq=False)
class RealSet:
    """One split of a data set: square images, at least one of every class.

    Raises:
        DataError: shapes, types, labels or class names do not fit together; the message names array or class.
    """

    images: Tensor
    """(M, ch, H, H), uint8; ch is 1 or 3, H is 4..1024."""
    labels: Tensor
    """(M,), int64, 0..C-1, on the device that computes."""
    classes: tuple[str, ...]
    """Class names; the position is the label."""
    mean: tuple[float, ...]
    """Channel means for pixels in [0, 1], which `normalise` subtracts."""
    std: tuple[float, ...]
    """Channel standard deviations, which `normalise` divides by."""
    _moments: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        _check_images(self.images)
        check_labels(self.labels, len(self.images), self.classes)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not all(math.isfinite(value) for value in values):
                raise DataError(
                    f"{name} is {values}: it must be {self.channels} finite numbers, one per channel"
                )
        if min(self.std) <= 0:
            raise DataError(f"std is {self.std}: every value must be positive")

    @property
    def device(self) -> torch.device:
        """The device that computes; the images may be in the host's memory instead."""
        return self.labels.device

    @property
    def channels(self) -> int:
        """ch: 1 or 3."""
        return self.images.shape[1]

    @property
    def image_size(self) -> int:
        """H: side of the images in pixels."""
        return self.images.shape[2]

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classes)

    @property
    def normalisation(self) -> Normalisation:
        """The normalisation of `normalise`."""
        return Normalisation(self.mean, self.std)

    def to(self, device: torch.device | str) -> RealSet:
        """The same set, for computing on `device`.

        Images that would take more than half of its free memory stay in the host's; batches are copied on demand.
        """
        device, images = torch.device(device), self.images
        free = gpu_free(device)
        if free is None or images.nbytes <= DATA_SHARE * free:
            images = images.to(device)
        return replace(self, images=images, labels=self.labels.to(device))

    def subset(self, positions: Tensor) -> RealSet:
        """The images at `positions` (B,), int64, in that order. `DataError` if a class would be empty."""
        return replace(
            self, images=self.images[positions.to(self.images.device)], labels=self.labels[positions]
        )

    def fingerprint(self) -> str:
        """Digest of images and labels: equal for the same images in the same order."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for part in (self.images, self.labels):
            for piece in torch.split(part, 1024):  # in pieces, to avoid a second contiguous copy of the whole
                digest.update(piece.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def class_index(self) -> list[Tensor]:
        """The positions of each class's images: int64, ascending, on the CPU, where batches are drawn."""
        return self._class_index

    @cached_property
    def _class_index(self) -> list[Tensor]:
        labels = self.labels.cpu()
        counts = torch.bincount(labels, minlength=self.num_classes).tolist()
        return list(torch.split_with_sizes(torch.argsort(labels, stable=True), counts))

    def take(self, positions: Tensor) -> Tensor:
        """The images at `positions` (B,), uint8, on the device that computes; does not synchronise with it."""
        return to_device(self.images[to_device(positions, self.images.device)], self.device)

    def floats(self, positions: Tensor) -> Tensor:
        """The images at `positions` (B,) as (B, ch, H, H), float32 in [0, 1], un-normalised."""
        return self.take(positions).to(torch.float32).div_(255)

    def prepare(self, images: Tensor) -> Tensor:
        """Convert images (B, ch, H, H), uint8, to the networks' input: float32, normalised."""
        return self.normalise(images.to(torch.float32).div_(255))

    def normalise(self, images: Tensor) -> Tensor:
        """(images - mean) / std per channel, for images (B, ch, H, W) in [0, 1] of any float type, on any device."""
        key = (images.dtype, images.device)
        if key not in self._moments:  # cached, because each copy from the host would stall the device
            with torch.inference_mode(False):  # so that the cached tensors can take part in autograd later
                mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
                std = torch.tensor(self.std, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
            self._moments[key] = mean, std
        mean, std = self._moments[key]
        return (images - mean) / std

    def facts(self, name: str) -> DataFacts:
        """The facts that a configuration is checked against."""
        return DataFacts(
            name=name,
            channels=self.channels,
            image_size=self.image_size,
            classes=self.classes,
            smallest_class=int(torch.bincount(self.labels).min()),
            images=len(self.labels),
        )


@dataclass(frozen=True)
class DataSet:
    """A data set with a name: the training images to condense, and the test images to evaluate with.

    Raises:
        DataError: the splits differ in classes, channels, image size or normalisation.
    """

    name: str
    train: RealSet
    test: RealSet

    def __post_init__(self) -> None:
        for what in ("classes", "channels", "image_size", "mean", "std"):
            ours, theirs = getattr(self.train, what), getattr(self.test, what)
            if ours != theirs:
                raise DataError(
                    f"{self.name!r}: {what} of train is {ours}, of test {theirs}: they must be the same"
                )

    def facts(self) -> DataFacts:
        """The facts that a configuration is checked against."""
        return self.train.facts(self.name).model_copy(update={"test_images": len(self.test.labels)})


def measure(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation, in units of 255, per channel of images (M, ch, H, W), uint8.

    Exact: taken from the channels' histograms, in double precision. The deviation is at least 0.001.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        # In parts, because the flattened copy of one channel of a large data set would be large too.
        parts = (images[i : i + 1024, channel].flatten() for i in range(0, len(images), 1024))
        histogram = torch.stack([torch.bincount(part, minlength=256) for part in parts]).sum(0)
        share = histogram.cpu().double() / histogram.sum().item()
        centre = float((share * values).sum())
        mean.append(centre)
        std.append(max(_LEAST_STD, math.sqrt(float((share * (values - centre) ** 2).sum()))))
    return tuple(mean), tuple(std)


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise DataError(f"images are {images.dtype} {tuple(images.shape)}: they must be uint8 (M, ch, H, W)")
    check_shape(*images.shape)


def check_shape(count: int, channels: int, height: int, width: int) -> None:
    """Raise `DataError` unless M images of ch x H x W can be condensed: square, of 1 or 3 channels."""
    if count == 0:
        raise DataError("there are no images")
    if channels not in (1, 3):
        raise DataError(f"images have {channels} channels: they must have 1 or 3")
    if height != width or not MIN_SIDE <= height <= MAX_SIDE:
        raise DataError(
            f"images are {width}×{height} pixels: they must be square, with a side of {MIN_SIDE}..{MAX_SIDE}"
        )


def check_labels(labels: Tensor, images: int, classes: Sequence[str]) -> None:
    """Raise `DataError` unless labels (M,) are int64 0..C-1, with an image of every class and distinct names."""
    if labels.dtype != torch.int64 or labels.shape != (images,):
        raise DataError(
            f"labels are {labels.dtype} {tuple(labels.shape)}: they must be int64 ({images},), one per image"
        )
    check_classes(classes)
    if len(set(classes)) != len(classes):
        twice = next(name for name in classes if list(classes).count(name) > 1)
        raise DataError(f"the class name {twice!r} is given twice: names must differ")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        raise DataError(
            f"labels range from {low} to {high}: {len(classes)} classes are labelled 0..{len(classes) - 1}"
        )
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    if 0 in counts:
        raise DataError(f"class {classes[counts.index(0)]!r} has no image: add some, or remove the class")
