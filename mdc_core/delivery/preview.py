"""Draw a condensed set: one row per class, one column per rank. Needs Pillow, no torch."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from mdc_core.delivery.fonts import Font, font_for
from mdc_core.delivery.rankmajor import SetInfo, Tiles
from mdc_core.errors import ConfigError
from mdc_core.names import MAX_NAME, visible

LEGIBLE_CELL = 56
"""Target size of a cell in pixels, if no scale is given …"""
LARGEST_SIDE = 2400
"""… provided that the picture is at most this wide and high, in pixels."""
GAP = 4
MARGIN = 8
FONT_SIZE = 14
LONGEST_LABEL = 220
PAPER, INK = (255, 255, 255), (32, 32, 32)


def preview_png(tiles: Tiles, info: SetInfo, scale: int | None = None) -> bytes:
    """Draw tiles `(k, C, f², ch, s, s)`, uint8, as a PNG: every cell is the mosaic of one class and rank.

    Pixels are enlarged `scale` times (1 or more) with nearest neighbour. By default, small images become legible and
    large sets stay within 2400 pixels. With 2 channels the first is shown, with 4 the first three.
    """
    k = tiles.shape[0] if tiles.ndim else 0
    if k < 1 or tiles.dtype != np.uint8 or tiles.shape != info.tile_shape(k):
        raise ConfigError(
            f"tiles are {tiles.dtype} {tiles.shape}, but subset {k} of this set has uint8 {info.tile_shape(k)}"
        )
    cells = mosaics(tiles, info)
    side = cells.shape[2]
    if scale is None:
        scale = _automatic_scale(side, columns=k, rows=len(info.classes))
    elif scale < 1:
        raise ConfigError(f"scale is {scale}: give a whole number, 1 or more")
    buffer = io.BytesIO()
    _draw(cells.repeat(scale, axis=2).repeat(scale, axis=3), info.classes).save(buffer, "PNG")
    return buffer.getvalue()


def mosaics(tiles: Tiles, info: SetInfo) -> npt.NDArray[np.uint8]:
    """RGB mosaics `(k, C, f·s, f·s, 3)` of tiles `(k, C, f², ch, s, s)`; tile p: row p // f, column p % f."""
    k, classes, _, channels, side, _ = tiles.shape
    factor = info.factor
    grid = tiles.reshape(k, classes, factor, factor, channels, side, side)
    # (k, C, row, column, ch, y, x) -> (k, C, row, y, column, x, ch)
    pictures = grid.transpose(0, 1, 2, 5, 3, 6, 4).reshape(k, classes, factor * side, factor * side, channels)
    return pictures[..., :3] if channels >= 3 else pictures[..., [0, 0, 0]]


def _automatic_scale(side: int, columns: int, rows: int) -> int:
    """The scale that makes cells legible without making the picture too large."""
    wanted = max(1, round(LEGIBLE_CELL / side))
    return max(1, min(wanted, LARGEST_SIDE // (side * max(columns, rows))))


def _draw(cells: npt.NDArray[np.uint8], classes: tuple[str, ...]) -> Image.Image:
    """Draw cells `(k, C, side, side, 3)` with class names on the left and rank numbers on top."""
    k, rows, side = cells.shape[:3]
    font = ImageFont.load_default(FONT_SIZE)
    labels = [_label(name, index) for index, name in enumerate(classes)]
    left = MARGIN + round(max(its.getlength(label) for label, its in labels)) + MARGIN
    top = MARGIN + FONT_SIZE + GAP
    pitch = max(side, FONT_SIZE) + GAP  # rows and columns leave room for their labels
    picture = Image.new("RGB", (left + k * pitch + MARGIN, top + rows * pitch + MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    for row, (label, its) in enumerate(labels):
        draw.text((left - MARGIN, top + row * pitch + side / 2), label, INK, its, anchor="rm")
    # If the numbers would touch, only every so many are written.
    every = -(-round(font.getlength(f"{k} ")) // pitch)
    for rank in range(k):
        x = left + rank * pitch
        if rank == 0 or (rank + 1) % every == 0:
            draw.text((x + side / 2, MARGIN + FONT_SIZE / 2), str(rank + 1), INK, font, anchor="mm")
        for row in range(rows):
            picture.paste(Image.fromarray(cells[rank, row]), (x, top + row * pitch))
    return picture


def _label(name: str, index: int) -> tuple[str, Font]:
    """A class name and a font that has its characters; the class's number if this machine has no such font."""
    line = " ".join(visible(name)[:MAX_NAME].split()) or "?"
    font = font_for(line, FONT_SIZE)
    if font is None:
        return f"class {index}", ImageFont.load_default(FONT_SIZE)
    return _shortened(line, font), font


def _shortened(line: str, font: Font) -> str:
    """The line, cut to fit the margin, with an ellipsis."""
    if font.getlength(line) <= LONGEST_LABEL:
        return line
    while font.getlength(line + "…") > LONGEST_LABEL:
        line = line[:-1]
    return line + "…"
