"""Read users' npz files as tensors. The input is untrusted, and nothing is unpickled."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdc_core.data.allocate import allocate
from mdc_core.data.splits import Splits, hold_out
from mdc_core.data.zips import check_apart
from mdc_core.errors import DataError
from mdc_core.names import normalised

T = TypeVar("T")

_SMALL = ("y_train", "y_test", "classes")
_PIECE_BYTES = 2**24
"""Pixels are read in pieces of about this size, so a set is never in memory twice."""


def read_npz(path: Path) -> Splits:
    """Read x_train (M, H, W) or (M, H, W, ch), uint8, and y_train (M,), integers from 0; likewise for test.

    x_test and y_test are optional (see `hold_out`), as is `classes`, the class names.

    Raises:
        DataError: an array is missing or unusable; the message names it.
    """
    return _with_arrays(path, lambda arrays: arrays.read())


@dataclass(frozen=True)
class Survey:
    """What an npz holds, apart from pixels."""

    classes: tuple[str, ...]
    shape: tuple[int, int, int, int]
    """M, ch, H, W of the training images that are not held out."""
    labels: Tensor
    """(M,), int64."""
    test_images: int
    held_out: bool


def survey_npz(path: Path) -> Survey:
    """What `read_npz` would read, without the pixels; raises the same errors."""
    return _with_arrays(path, lambda arrays: arrays.survey())


def _with_arrays(path: Path, use: Callable[[_Arrays], T]) -> T:
    """Call `use` with the opened arrays; any failure becomes a `DataError`."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an npz file: write it with numpy.savez")
    try:
        # If the archive is damaged, numpy does not close a file that it opened itself.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            check_apart(file.zip, str(path))
            arrays = {name: file[name] for name in _SMALL if name in file.files}
            stored = {name: _Stored.open(file, name) for name in ("x_train", "x_test") if name in file.files}
            return use(_checked(arrays, stored, path))
    except DataError:
        raise
    except Exception as error:  # for damaged arrays, numpy raises half a dozen kinds of exception
        raise DataError(f"{path} cannot be read as arrays ({error}): write it with numpy.savez") from error


def channels_first(x: NDArray[np.uint8]) -> Tensor:
    """Images (M, H, W) or (M, H, W, ch) as one contiguous tensor (M, ch, H, W)."""
    x = x[..., None] if x.ndim == 3 else x
    images = torch.empty(x.shape[0], x.shape[3], x.shape[1], x.shape[2], dtype=torch.uint8)
    images.numpy()[...] = x.transpose(0, 3, 1, 2)
    return images


@dataclass(frozen=True)
class _Stored:
    """An array of images that is still in the file."""

    file: Any
    """The opened npz."""
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    """Whether the array is in Fortran order: the first axis varies fastest."""

    @classmethod
    def open(cls, file: Any, name: str) -> _Stored:
        """Read only the header."""
        with file.zip.open(f"{name}.npy") as member:
            shape, fortran, dtype = _header(member)
        return cls(file, name, shape, dtype, fortran)

    def read(self, *parts: Tensor) -> list[Tensor]:
        """Images (M', ch, H, W) for each of `parts`, which are ascending positions; reads the file piece by piece."""
        height, width, channels = (*self.shape[1:], 1)[:3]
        outputs = [allocate((len(part), channels, height, width)) for part in parts]
        filled = [0] * len(parts)
        chosen = [np.isin(np.arange(self.shape[0]), part.numpy()) for part in parts]
        for start, piece in self._pieces():
            images = piece.reshape(len(piece), height, width, channels).transpose(0, 3, 1, 2)
            for i, mask in enumerate(chosen):
                ours = images[mask[start : start + len(piece)]]
                outputs[i][filled[i] : filled[i] + len(ours)] = ours
                filled[i] += len(ours)
        return [torch.from_numpy(output) for output in outputs]

    def _pieces(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Each piece, with the position of its first image."""
        if self.fortran:
            yield 0, self.file[self.name]
            return
        image = math.prod(self.shape[1:])
        with self.file.zip.open(f"{self.name}.npy") as member:
            _header(member)
            step = max(1, _PIECE_BYTES // max(1, image))
            for start in range(0, self.shape[0], step):
                count = min(step, self.shape[0] - start)
                data = member.read(count * image)
                yield start, np.frombuffer(data, dtype=np.uint8).reshape(count, *self.shape[1:])


def _header(member: Any) -> Any:
    """Read the array's header: shape, Fortran order, type. The values follow it."""
    if np.lib.format.read_magic(member) == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


@dataclass(frozen=True)
class _Arrays:
    """An opened npz; everything but its pixels has been checked."""

    classes: tuple[str, ...]
    train: _Stored
    labels: Tensor
    """(M,), for all training images."""
    test: _Stored | None
    test_labels: Tensor | None

    def read(self) -> Splits:
        """Read both splits."""
        if self.test is not None and self.test_labels is not None:
            (x,) = self.train.read(torch.arange(len(self.labels)))
            (test_x,) = self.test.read(torch.arange(len(self.test_labels)))
            return Splits(self.classes, (x, self.labels), (test_x, self.test_labels))
        train, test = hold_out(self.labels, self.classes)
        x, test_x = self.train.read(train, test)
        return Splits(self.classes, (x, self.labels[train]), (test_x, self.labels[test]))

    def survey(self) -> Survey:
        """Everything but the pixels."""
        labels, tests = self.labels, self.test_labels
        if tests is None:
            train, tests = hold_out(labels, self.classes)
            labels = labels[train]
        height, width, channels = (*self.train.shape[1:], 1)[:3]
        shape = (len(labels), channels, height, width)
        return Survey(self.classes, shape, labels, len(tests), self.test is None)


def _checked(arrays: dict[str, NDArray[Any]], stored: dict[str, _Stored], path: Path) -> _Arrays:
    if missing := [name for name in ("x_train", "y_train") if name not in {*arrays, *stored}]:
        raise DataError(f"{path} has no array {missing[0]!r}: it needs x_train and y_train")
    if ("x_test" in stored) != ("y_test" in arrays):
        raise DataError(f"{path} has only one of x_test and y_test: add the other, or leave out both")
    classes = _class_names(arrays)
    y = _labels(stored["x_train"], arrays["y_train"], "train", classes)
    test = stored.get("x_test")
    test_y = None if test is None else _labels(test, arrays["y_test"], "test", classes)
    return _Arrays(classes, stored["x_train"], y, test, test_y)


def _class_names(arrays: dict[str, NDArray[Any]]) -> tuple[str, ...]:
    """The array `classes`, or else the labels 0..C-1 as text, where C-1 is the highest in y_train."""
    if "classes" in arrays:
        names = arrays["classes"]
        if names.ndim != 1 or names.dtype.kind != "U":
            raise DataError(f"array 'classes' is {names.dtype} {names.shape}: make it a list of strings")
        return tuple(map(normalised, names.tolist()))
    labels = arrays["y_train"]
    if labels.dtype.kind not in "iu" or labels.size == 0:
        raise DataError(f"array 'y_train' is {labels.dtype} {labels.shape}: it must hold integer labels")
    highest = int(labels.max())
    if highest >= labels.size:  # a class must be empty, and C names may not fit into memory
        raise DataError(
            f"array 'y_train' has the label {highest}, but only {labels.size} images: number classes from 0"
        )
    return tuple(str(label) for label in range(highest + 1))


def _labels(x: _Stored, y: NDArray[Any], split: str, classes: tuple[str, ...]) -> Tensor:
    """The labels (M,) of one split, after checking them and the shape and type of the images."""
    if x.dtype != np.uint8:
        hint = "multiply [0, 1] by 255, round, and convert"
        raise DataError(f"array 'x_{split}' is {x.dtype}: it must be uint8, 0..255 ({hint})")
    if not (len(x.shape) == 3 or (len(x.shape) == 4 and x.shape[3] in (1, 3))):
        raise DataError(f"array 'x_{split}' is {x.shape}: it must be (M, H, W) or (M, H, W, ch), ch 1 or 3")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise DataError(f"array 'y_{split}' is {y.dtype} {y.shape}: it must hold one integer label per image")
    if x.shape[0] != len(y):
        raise DataError(f"array 'x_{split}' has {x.shape[0]} images, but 'y_{split}' has {len(y)} labels")
    if len(y) == 0:
        raise DataError(f"array 'x_{split}' is empty: it needs images")
    for label in (int(y.min()), int(y.max())):
        if not 0 <= label < len(classes):
            raise DataError(
                f"array 'y_{split}' has the label {label}, but the {len(classes)} classes of the training "
                f"data are labelled 0..{len(classes) - 1}"
            )
    return torch.from_numpy(y.astype(np.int64))
