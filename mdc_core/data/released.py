"""Import files of the paper's released code: mosaics become tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdc_core.errors import ConfigError, DataError

OVERSHOOT = 0.5
"""How far values may lie outside [0, 1]. The released code clamps before an outer loop, not after it, so the last
updates may exceed the range. Normalised pixels, which cannot be imported, lie much further outside."""


def import_released(
    path: Path | str, factor: int, classes: Sequence[str] | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """Read a released `data_*.pt`: its tiles (N, C, f², ch, s, s), float32 in [0, 1], and the facts of the set.

    The file holds a pair (images (C·N, ch, H, W), labels (C·N,)), class by class; every image is a mosaic of f × f
    tiles. The released code decodes position by position: for each class, piece p = position · N + image, where
    position = row · f + column. Piece p becomes tile j = p, at rank j // f² and position j % f². So the first k ranks
    hold exactly the released code's subset k. `factor` is f, which the file does not record.

    The second value has the keys ipc, factor, classes, image_size and channels. Class names default to the labels.
    Values that the last updates pushed out of [0, 1] are clamped.

    Raises:
        ConfigError: `factor` is not positive.
        DataError: the file is another kind of file, its pixels are normalised, or f does not divide H.
    """
    if factor < 1:
        raise ConfigError(f"factor is {factor}: give a whole number, 1 or more")
    images, labels = _read(Path(path))
    total, channels, side, width = images.shape
    if side != width or side % factor:
        raise DataError(
            f"{path} has mosaics of {side}×{width} pixels, which factor {factor} does not divide into equal square "
            f"tiles: check the factor (if it is correct, the released code padded the last tiles, and padded tiles "
            f"cannot be imported)"
        )
    count = len(set(labels.tolist()))
    if total % count or not torch.equal(labels, torch.arange(count).repeat_interleave(total // count)):
        raise DataError(
            f"{path}: the labels are not 0..C-1, class by class, with equally many images each: only such files can be "
            "imported"
        )
    names = tuple(classes) if classes is not None else tuple(str(label) for label in range(count))
    if len(names) != count:
        raise DataError(f"{path} has {count} classes, but {len(names)} class names were given: give {count}")
    ipc, s = total // count, side // factor
    pieces = images.view(count, ipc, channels, factor, s, factor, s).permute(0, 3, 5, 1, 2, 4, 6)
    tiles = pieces.reshape(
        count, ipc, factor**2, channels, s, s
    )  # (C, f, f, N, …) flattened is p, then cut by rank
    info = {"ipc": ipc, "factor": factor, "classes": names, "image_size": side, "channels": channels}
    return tiles.transpose(0, 1).contiguous(), info


def _read(path: Path) -> tuple[Tensor, Tensor]:
    """Read images, float32 in [0, 1], and labels, int64; with weights_only, so that no code in the file can run."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}): check the path") from error
    except Exception as error:  # torch's own message would suggest turning the protection off
        raise DataError(
            f"{path} is not a file of tensors written by torch.save: only such files can be imported"
        ) from error
    if not (
        isinstance(stored, list | tuple) and len(stored) == 2 and all(isinstance(x, Tensor) for x in stored)
    ):
        raise DataError(
            f"{path} does not hold a pair (images, labels): only the released data_*.pt can be imported"
        )
    images, labels = stored
    if (
        images.dim() != 4
        or not images.is_floating_point()
        or images.shape[1] not in (1, 3)
        or not images.numel()
    ):
        raise DataError(
            f"{path}: images are {images.dtype} {tuple(images.shape)}, not floats (C·N, 1 or 3, H, W)"
        )
    if labels.shape != images.shape[:1]:
        raise DataError(f"{path}: {len(images)} images, but labels of shape {tuple(labels.shape)}")
    images = images.detach().float()
    low, high = float(images.min()), float(images.max())
    if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):  # also NaN
        raise DataError(
            f"{path}: pixels range from {low:.3g} to {high:.3g}, but must not be normalised, and lie in [0, 1]: "
            f"multiply by std and add mean before importing"
        )
    return images.clamp(0, 1), labels.detach().long()
