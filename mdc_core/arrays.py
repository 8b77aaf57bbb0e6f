"""Users' own npz files as tensors. Nothing here trusts its input, and nothing is unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdc_core.errors import DataError
from mdc_core.splits import Splits, hold_out

_KNOWN = ("x_train", "y_train", "x_test", "y_test", "classes")


def read_npz(path: Path) -> Splits:
    """Arrays x_train (M, H, W) or (M, H, W, ch), uint8, and y_train (M,), integers from 0; the same for test.

    x_test and y_test are optional (see `hold_out`), and so is `classes`, the class names.

    Raises:
        DataError: an array is missing or cannot be used; the message names it.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an npz file: write it with numpy.savez")
    try:
        # numpy leaves a file that it opened by itself open when the archive turns out to be damaged.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _KNOWN if name in file.files}
    except Exception as error:  # numpy reports damaged arrays by half a dozen kinds of exception
        raise DataError(f"{path} cannot be read as arrays ({error}): write it with numpy.savez") from error
    for name in ("x_train", "y_train"):
        if name not in arrays:
            raise DataError(f"{path} has no array {name!r}: it needs x_train and y_train")
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise DataError(f"{path} has only one of x_test and y_test: add the other, or leave out both")
    classes = _class_names(arrays)
    x, y = _split(arrays, "train", classes)
    if "x_test" in arrays:
        test_x, test_y = _split(arrays, "test", classes)
    else:
        kept, held = hold_out(y, classes)
        x, y, test_x, test_y = x[kept.numpy()], y[kept], x[held.numpy()], y[held]
    return Splits(classes, (channels_first(x), y), (channels_first(test_x), test_y))


def channels_first(x: NDArray[np.uint8]) -> Tensor:
    """Images (M, H, W) or (M, H, W, ch) as one contiguous tensor (M, ch, H, W)."""
    x = x[..., None] if x.ndim == 3 else x
    images = torch.empty(x.shape[0], x.shape[3], x.shape[1], x.shape[2], dtype=torch.uint8)
    images.numpy()[...] = x.transpose(0, 3, 1, 2)
    return images


def _class_names(arrays: dict[str, NDArray[Any]]) -> tuple[str, ...]:
    """The names given, or the labels 0..C-1 that y_train goes up to."""
    if "classes" in arrays:
        names = arrays["classes"]
        if names.ndim != 1 or names.dtype.kind != "U":
            raise DataError(f"array 'classes' is {names.dtype} {names.shape}: make it a list of strings")
        return tuple(names.tolist())
    labels = arrays["y_train"]
    if labels.dtype.kind not in "iu" or labels.size == 0:
        raise DataError(f"array 'y_train' is {labels.dtype} {labels.shape}: it must hold integer labels")
    highest = int(labels.max())
    if highest >= labels.size:  # some class is empty; and C names may not fit into memory
        raise DataError(
            f"array 'y_train' has the label {highest}, but only {labels.size} images: number classes from 0"
        )
    return tuple(str(label) for label in range(highest + 1))


def _split(
    arrays: dict[str, NDArray[Any]], split: str, classes: tuple[str, ...]
) -> tuple[NDArray[np.uint8], Tensor]:
    """x and y of one split, checked."""
    x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
    if x.dtype != np.uint8:
        hint = "multiply [0, 1] by 255, round, and convert"
        raise DataError(f"array 'x_{split}' is {x.dtype}: it must be uint8, 0..255 ({hint})")
    if not (x.ndim == 3 or (x.ndim == 4 and x.shape[3] in (1, 3))):
        raise DataError(f"array 'x_{split}' is {x.shape}: it must be (M, H, W) or (M, H, W, ch), ch 1 or 3")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise DataError(f"array 'y_{split}' is {y.dtype} {y.shape}: it must hold one integer label per image")
    if len(x) != len(y):
        raise DataError(f"array 'x_{split}' has {len(x)} images, but 'y_{split}' has {len(y)} labels")
    if len(y) == 0:
        raise DataError(f"array 'x_{split}' is empty: it needs images")
    for label in (int(y.min()), int(y.max())):
        if not 0 <= label < len(classes):
            raise DataError(
                f"array 'y_{split}' has the label {label}, but the {len(classes)} classes of the training "
                f"data are labelled 0..{len(classes) - 1}"
            )
    return x, torch.from_numpy(y.astype(np.int64))
