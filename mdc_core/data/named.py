"""Read the named data sets from where their usual libraries keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdc_core.config.presets import NAMED
from mdc_core.data.arrays import channels_first
from mdc_core.data.images import read_folder
from mdc_core.data.splits import Splits, hold_out
from mdc_core.errors import DataError

DIGITS_TEST = 0.2
"""Share of `digits` that is held out as its test split."""
# The torchvision class, and the folder below the root in which it looks.
_TORCHVISION = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
    "svhn": ("SVHN", ""),
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
}


def read_named(name: str, root: Path, download: bool) -> Splits:
    """Read both splits of one of the sets in `presets.NAMED`.

    Raises:
        DataError: there is no such set, or it is missing, incomplete or damaged below `root`.
    """
    if name not in NAMED:
        raise DataError(f"there is no named set {name!r}: choose one of {', '.join(NAMED)}")
    if name == "digits":
        return _digits()
    if name == "imagenet-10":
        return _imagenet10(root / name)
    return _torchvision(name, root, download)


def _digits() -> Splits:
    """scikit-learn's 1797 digits of 8 × 8 pixels, with grey levels 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = channels_first(np.rint(bunch.images * (255 / 16)).astype(np.uint8))
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    classes = NAMED["digits"].classes
    train, test = hold_out(labels, classes, DIGITS_TEST)
    return Splits(classes, (images[train], labels[train]), (images[test], labels[test]))


def _imagenet10(folder: Path) -> Splits:
    if not all((folder / split).is_dir() for split in ("train", "val")):
        raise DataError(
            f"'imagenet-10' is expected in {folder}, which has no train and val folders. It cannot be downloaded: "
            f"copy (or link) the folders of ten ImageNet classes into {folder / 'train'} and {folder / 'val'}"
        )
    splits = read_folder(folder, NAMED["imagenet-10"].image_size, test="val")
    if len(splits.classes) != 10:
        raise DataError(
            f"{folder}/train has {len(splits.classes)} classes, but 'imagenet-10' has 10: keep ten folders"
        )
    return splits


def _torchvision(name: str, root: Path, download: bool) -> Splits:
    """Both splits of a torchvision set, as whole arrays."""
    from torchvision import datasets

    kind, folder = _TORCHVISION[name]
    classes = NAMED[name].classes
    parts = []
    for split in ("train", "test"):
        which: dict[str, Any] = {"split": split} if name == "svhn" else {"train": split == "train"}
        try:
            source = getattr(datasets, kind)(root, download=download, **which)
        except (
            Exception
        ) as error:  # missing, incomplete, damaged, not downloadable: each fails in its own way
            raise DataError(
                f"{name!r} ({split} split) cannot be loaded from {root / folder} ({error}): download it (--download, "
                "or download=True), or copy its files there"
            ) from error
        if name == "svhn":  # (M, ch, H, W) already
            images, labels = torch.from_numpy(np.ascontiguousarray(source.data)), source.labels
        else:
            images, labels = channels_first(np.asarray(source.data)), source.targets
        parts.append((images, torch.as_tensor(labels, dtype=torch.int64)))
        if name in ("cifar10", "cifar100"):
            classes = tuple(source.classes)
    return Splits(classes, parts[0], parts[1])
