"""Decode the file of a subset to training images, with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mdc_core.delivery import rankmajor
from mdc_core.delivery.rankmajor import SetInfo, Tiles
from mdc_core.errors import FormatError
from mdc_device import files

Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Subset:
    """Subset k of a condensed set; images and labels are in rank-major order: rank, then class, then tile."""

    info: SetInfo
    """Shape and normalisation of the set."""
    tiles: Tiles
    """`(k, C, f², ch, s, s)`, uint8, read-only."""
    k: int
    """Images per class."""

    def images(self) -> Images:
        """Decoded images `(k·C·f², ch, H, H)`, float32 in [0, 1], not normalised."""
        side = self.info.image_size
        per_rank = self.tiles.shape[1] * self.tiles.shape[2]
        images = np.empty((self.k * per_rank, self.info.channels, side, side), np.float32)
        for rank, tiles in enumerate(self.tiles):  # one at a time: only the result is large
            flat = tiles.reshape(per_rank, *tiles.shape[2:])  # (C·f², ch, s, s)
            decoded = upsample(flat.astype(np.float32) / np.float32(255), side)
            images[rank * per_rank : (rank + 1) * per_rank] = decoded
        return images

    def labels(self) -> npt.NDArray[np.int64]:
        """Labels `(k·C·f²,)` of the images: positions in `info.classes`."""
        _, classes, tiles = self.tiles.shape[:3]
        return np.tile(np.repeat(np.arange(classes, dtype=np.int64), tiles), self.k)


def open_subset(path: str | Path) -> Subset:
    """Open the subset in a file. Raises `FormatError` if the file is damaged, truncated or of an unknown version.

    The file is memory-mapped, so `tiles` take no memory of their own. Commands replace the file instead of changing it,
    so open tiles stay valid. If the file is longer than its header says, an interrupted shrink left it so; the header
    counts.
    """
    with Path(path).open("rb") as file:
        info, k = rankmajor.read_header(files.beginning_of(file))
        start, end = rankmajor.subset_range(info, k)
        length = files.length_of(file)
        if length < end:
            raise FormatError(
                f"the file has {length} bytes, but its header says subset {k} of {end}: fetch it again"
            )
        tiles = np.memmap(file, np.uint8, "r", offset=start, shape=info.tile_shape(k))
    return Subset(info=info, tiles=tiles.view(np.ndarray), k=k)


def upsample(tiles: Images, side: int) -> Images:
    """Enlarge `(…, s, s)` bilinearly to `(…, side, side)`, float32, repeating the edges.

    Equals `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`.
    """
    lower, upper, weight = _taps(tiles.shape[-1], side)
    keep = np.float32(1) - weight
    rows = tiles[..., lower, :] * keep[:, None] + tiles[..., upper, :] * weight[:, None]
    enlarged: Images = rows[..., lower] * keep + rows[..., upper] * weight
    return enlarged


def _taps(source: int, side: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Images]:
    """For each output position, the two input positions that it blends, and the weight of the second."""
    # As torch computes it: the scale in float32, then one fused multiply-add, rounded once to float32.
    scale = np.float64(np.float32(source) / np.float32(side))
    centre = np.maximum(((np.arange(side) + 0.5) * scale - 0.5).astype(np.float32), np.float32(0))
    lower = np.minimum(centre.astype(np.intp), source - 1)
    upper = np.minimum(lower + 1, source - 1)
    return lower, upper, (centre - lower).astype(np.float32)
