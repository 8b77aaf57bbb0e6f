"""Real data: uint8 images in memory, and where they come from.

Named sets come from scikit-learn (`digits`), torchvision, or a folder like ImageNet's (`imagenet-10`):
see `mdc_core.data.named`. A user's own data come from an npz (`mdc_core.data.arrays`), or a folder or zip of images
(`mdc_core.data.images`). Where these have no test split, a tenth of every class is held out of training: a fixed
choice, at least one image per class on either side.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mdc_core.compute.batching import gpu_free
from mdc_core.compute.cuda_graph import to_device
from mdc_core.config.presets import NAMED, PRESETS
from mdc_core.config.settings import MAX_SIDE, MIN_SIDE, DataFacts, check_fixed_size
from mdc_core.data.arrays import read_npz, survey_npz
from mdc_core.data.images import is_npz, read_folder, read_zip, survey_folder, survey_zip
from mdc_core.data.layouts import check_classes
from mdc_core.data.named import read_named
from mdc_core.data.normalisation import Normalisation
from mdc_core.data.splits import Splits
from mdc_core.errors import DataError
from mdc_core.memory import DATA_SHARE

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
    """Channel means that `normalise` subtracts, for pixels in [0, 1]."""
    std: tuple[float, ...]
    """Channel standard deviations that `normalise` divides by."""
    _moments: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        _check_images(self.images)
        _check_labels(self.labels, len(self.images), self.classes)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not all(math.isfinite(value) for value in values):
                raise DataError(
                    f"{name} is {values}: it must be {self.channels} finite numbers, one per channel"
                )
        if min(self.std) <= 0:
            raise DataError(f"std is {self.std}: every value must be positive")

    @property
    def device(self) -> torch.device:
        """Where batches are computed on; the images themselves may be in the host's memory."""
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
        """What `normalise` does."""
        return Normalisation(self.mean, self.std)

    def to(self, device: torch.device | str) -> RealSet:
        """The same set, for computing on `device`.

        Images that would take half of its free memory or more stay in the host's, and their batches are copied
        when they are asked for.
        """
        device, images = torch.device(device), self.images
        free = gpu_free(device)
        if free is None or images.nbytes <= DATA_SHARE * free:
            images = images.to(device)
        return replace(self, images=images, labels=self.labels.to(device))

    def subset(self, positions: Tensor) -> RealSet:
        """The images at `positions` (B,), int64, in that order; `DataError` when a class has none of them."""
        return replace(
            self, images=self.images[positions.to(self.images.device)], labels=self.labels[positions]
        )

    def fingerprint(self) -> str:
        """Digest of images and labels: whether two sets are the same, in the same order."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for part in (self.images, self.labels):
            for piece in torch.split(part, 1024):  # contiguous in parts, not as a second whole
                digest.update(piece.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def class_index(self) -> list[Tensor]:
        """Per class the positions of its images, int64, ascending, on the CPU, where batches are drawn."""
        return self._class_index

    @cached_property
    def _class_index(self) -> list[Tensor]:
        labels = self.labels.cpu()
        counts = torch.bincount(labels, minlength=self.num_classes).tolist()
        return list(torch.split_with_sizes(torch.argsort(labels, stable=True), counts))

    def take(self, positions: Tensor) -> Tensor:
        """The images at `positions` (B,), uint8, where batches are computed on; waits for no device."""
        return to_device(self.images[to_device(positions, self.images.device)], self.device)

    def floats(self, positions: Tensor) -> Tensor:
        """The images at `positions` (B,) as (B, ch, H, H), float32 in [0, 1], un-normalised."""
        return self.take(positions).to(torch.float32).div_(255)

    def prepare(self, images: Tensor) -> Tensor:
        """Images (B, ch, H, H), uint8, as the networks take them: float32, normalised."""
        return self.normalise(images.to(torch.float32).div_(255))

    def normalise(self, images: Tensor) -> Tensor:
        """(images - mean) / std per channel: (B, ch, H, W) in [0, 1], of any float type, on any device."""
        key = (images.dtype, images.device)
        if key not in self._moments:  # kept, because each copy from the host would stall the device
            with torch.inference_mode(False):  # so that what is kept can take part in autograd later
                mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
                std = torch.tensor(self.std, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
            self._moments[key] = mean, std
        mean, std = self._moments[key]
        return (images - mean) / std

    def facts(self, name: str) -> DataFacts:
        """What a configuration is checked against."""
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
    """A named data set: what is condensed, and the test images that judge the outcome.

    Raises:
        DataError: the two splits differ in classes, channels, image size or normalisation.
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
        """What a configuration is checked against."""
        return self.train.facts(self.name).model_copy(update={"test_images": len(self.test.labels)})


Kind = Literal["named", "folder", "zip", "npz"]


def kind_of(source: str) -> Kind:
    """What `source` is: a named set, or a folder of images, a zip of images or an npz at a path.

    Files are told apart by content, not by suffix. A folder called like a named set is reached as `./name`.

    Raises:
        DataError: it is none of these.
    """
    if source in NAMED:
        return "named"
    path = Path(source)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError:  # a name that the file system does not accept
        is_folder = is_file = False
    if is_folder:
        return "folder"
    if not is_file:
        raise DataError(
            f"{source!r} is neither a file, a folder nor a named set: the named sets are {', '.join(NAMED)}"
        )
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{source!r} is neither a zip nor an npz: give one of these, a folder, or a named set: "
            f"{', '.join(NAMED)}"
        )
    return "npz" if is_npz(path) else "zip"


def survey(source: str, *, image_size: int | None = None, preset: str | None = None) -> DataFacts:
    """What `load` would load, without a pixel: from names and headers, or what is known of a named set.

    Takes the same, and raises the same, except that a named set may be missing.
    """
    kind, path = kind_of(source), Path(source)
    if kind == "folder":
        return survey_folder(path, image_size, preset)
    if kind == "zip":
        return survey_zip(path, image_size, preset)
    facts = NAMED[source] if kind == "named" else _npz_facts(path)
    check_fixed_size(source, facts.image_size, image_size)
    return facts


def load(
    source: str,
    root: Path,
    *,
    image_size: int | None = None,
    preset: str | None = None,
    download: bool = False,
) -> DataSet:
    """A named set from `root`, or the data at a path (see `kind_of`).

    `image_size` is the side that images of a folder or zip get; without it it is the median of their short sides,
    at most 64, or as large as `preset` is made for. `download` lets torchvision fetch a named set into `root`.

    Raises:
        DataError: there is no such data, or it cannot be used.
        ConfigError: `image_size` is out of range, or differs from the size of data that are not resized.
    """
    kind, path = kind_of(source), Path(source)
    if kind == "folder":
        return load_folder(path, image_size, preset)
    if kind == "zip":
        return load_zip(path, image_size, preset)
    if kind == "named":
        check_fixed_size(source, NAMED[source].image_size, image_size)
        return load_named(source, root, download)
    data = load_npz(path)
    check_fixed_size(source, data.train.image_size, image_size)
    return data


def load_folder(path: Path, image_size: int | None = None, preset: str | None = None) -> DataSet:
    """Images in `train/<class>/*` and, optionally, `test/<class>/*`; see `archives.read_folder`."""
    return _data_set(path.resolve().name, read_folder(path, image_size, preset))


def load_zip(path: Path, image_size: int | None = None, preset: str | None = None) -> DataSet:
    """The same as `load_folder`, of a zip; see `archives.read_zip`."""
    return _data_set(path.stem, read_zip(path, image_size, preset))


def load_npz(path: Path) -> DataSet:
    """Arrays x_train, y_train and, optionally, x_test, y_test and classes; see `arrays.read_npz`."""
    return _data_set(path.stem, read_npz(path))


def _npz_facts(path: Path) -> DataFacts:
    """What an npz tells without its pixels."""
    found = survey_npz(path)
    try:
        _check_shape(*found.shape)
        _check_labels(found.labels, found.shape[0], found.classes)
    except DataError as error:
        raise DataError(f"{path.stem!r}, train split: {error}") from error
    return DataFacts(
        name=path.stem,
        channels=found.shape[1],
        image_size=found.shape[2],
        classes=found.classes,
        smallest_class=int(torch.bincount(found.labels).min()),
        images=found.shape[0],
        test_images=found.test_images,
        held_out=found.held_out,
    )


def load_named(name: str, root: Path, download: bool = False) -> DataSet:
    """One of the sets in `presets.NAMED`; all but `digits` are looked for below `root`.

    `imagenet-10` is `root/imagenet-10/train|val/<class>/*` with ten classes, brought to 224 pixels and
    centre-cropped. `digits`, which has no test split of its own, holds out a fifth of every class. Mean and
    standard deviation are those of the preset, or measured.

    Raises:
        DataError: no such set, or it is missing, incomplete or damaged below `root`; says how to get it.
    """
    splits = read_named(name, root, download)
    return _data_set(name, splits, PRESETS[name].mean, PRESETS[name].std)


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


def _data_set(
    name: str, splits: Splits, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> DataSet:
    if mean is None or std is None:
        mean, std = measure(splits.train[0])
    parts = []
    for split, (images, labels) in (("train", splits.train), ("test", splits.test)):
        try:
            parts.append(RealSet(images, labels, splits.classes, mean, std))
        except DataError as error:
            raise DataError(f"{name!r}, {split} split: {error}") from error
    return DataSet(name, *parts)


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise DataError(f"images are {images.dtype} {tuple(images.shape)}: they must be uint8 (M, ch, H, W)")
    _check_shape(*images.shape)


def _check_shape(count: int, channels: int, height: int, width: int) -> None:
    if count == 0:
        raise DataError("there are no images")
    if channels not in (1, 3):
        raise DataError(f"images have {channels} channels: they must have 1 or 3")
    if height != width or not MIN_SIDE <= height <= MAX_SIDE:
        raise DataError(
            f"images are {width}×{height} pixels: they must be square, with a side of {MIN_SIDE}..{MAX_SIDE}"
        )


def _check_labels(labels: Tensor, images: int, classes: Sequence[str]) -> None:
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
