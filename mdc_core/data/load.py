"""Load data: a named set, or a user's own folder, zip or npz.

Named sets come from scikit-learn (`digits`), torchvision, or a folder like ImageNet's (`imagenet-10`): see
`mdc_core.data.named`. A user's own data come from an npz (`mdc_core.data.arrays`), or a folder or zip of images
(`mdc_core.data.images`). Without a test split, a tenth of every class is held out of training: a fixed choice, at
least one image per class on either side.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

import torch

from mdc_core.config.presets import NAMED, PRESETS
from mdc_core.config.settings import DataFacts, check_fixed_size
from mdc_core.data.arrays import read_npz, survey_npz
from mdc_core.data.images import is_npz, read_folder, read_zip, survey_folder, survey_zip
from mdc_core.data.named import read_named
from mdc_core.data.real_set import DataSet, RealSet, check_labels, check_shape, measure
from mdc_core.data.splits import Splits
from mdc_core.errors import DataError

Kind = Literal["named", "folder", "zip", "npz"]


def kind_of(source: str) -> Kind:
    """Whether `source` is a named set, or the path of a folder of images, a zip of images, or an npz.

    The content of a file decides, not its suffix. For a folder with a named set's name, write `./name`.

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
    """What `load` would load, without reading pixels: from names and headers, or from the table of named sets.

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
    """Images in `train/<class>/*` and, optionally, `test/<class>/*`; see `images.read_folder`."""
    return _data_set(path.resolve().name, read_folder(path, image_size, preset))


def load_zip(path: Path, image_size: int | None = None, preset: str | None = None) -> DataSet:
    """The same as `load_folder`, of a zip; see `images.read_zip`."""
    return _data_set(path.stem, read_zip(path, image_size, preset))


def load_npz(path: Path) -> DataSet:
    """Arrays x_train, y_train and, optionally, x_test, y_test and classes; see `arrays.read_npz`."""
    return _data_set(path.stem, read_npz(path))


def _npz_facts(path: Path) -> DataFacts:
    """What an npz tells without its pixels."""
    found = survey_npz(path)
    try:
        check_shape(*found.shape)
        check_labels(found.labels, found.shape[0], found.classes)
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
