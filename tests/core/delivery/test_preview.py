"""The picture of a set: every tile stands where it should, and labels do not touch it."""

import io
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageFont

from mdc_core.delivery import fonts, preview
from mdc_core.delivery.preview import mosaics, preview_png
from mdc_core.delivery.rankmajor import SetInfo
from mdc_core.errors import ConfigError


def info_of(channels: int = 3, classes: tuple[str, ...] = ("a", "b")) -> SetInfo:
    return SetInfo(3, 2, classes, (0.5,) * channels, (0.5,) * channels, 6, channels)


def random_tiles(info: SetInfo, k: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, info.tile_shape(k), dtype=np.uint8)


def test_a_mosaic_has_its_tiles_row_by_row() -> None:
    info = info_of()
    tiles = random_tiles(info, 2)
    pictures = mosaics(tiles, info)
    assert pictures.shape == (2, 2, 6, 6, 3)
    for position in range(4):
        row, column = divmod(position, 2)
        piece = pictures[1, 0, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        np.testing.assert_array_equal(piece, tiles[1, 0, position].transpose(1, 2, 0))


def test_one_channel_is_grey() -> None:
    info = info_of(channels=1)
    tiles = random_tiles(info, 1)
    pictures = mosaics(tiles, info)
    np.testing.assert_array_equal(pictures[0, 1, :3, :3, 2], tiles[0, 1, 0, 0])
    assert (pictures[..., 0] == pictures[..., 1]).all()


@pytest.mark.parametrize("scale", [1, 5, None])
def test_every_cell_is_in_the_picture_enlarged_without_smoothing(scale: int | None) -> None:
    info = info_of()
    tiles = random_tiles(info, 3)
    with Image.open(io.BytesIO(preview_png(tiles, info, scale))) as image:
        pixels = np.asarray(image)
    cells = mosaics(tiles, info)
    enlargement = scale or round(56 / 6)
    corners = {}
    for rank in range(3):
        for label in range(2):
            cell = cells[rank, label].repeat(enlargement, 0).repeat(enlargement, 1)
            windows = np.lib.stride_tricks.sliding_window_view(pixels, cell.shape)[:, :, 0]
            found = np.argwhere((windows == cell).all(axis=(2, 3, 4)))
            assert len(found) == 1
            corners[rank, label] = tuple(found[0])
    assert len({y for (_, label), (y, _) in corners.items() if label == 0}) == 1
    assert len({x for (rank, _), (_, x) in corners.items() if rank == 0}) == 1
    assert corners[0, 0][1] < corners[1, 0][1] < corners[2, 0][1]
    assert corners[0, 0][0] < corners[0, 1][0]
    # Ink left of the cells (names) and above them (numbers).
    y, x = corners[0, 0]
    assert pixels[y:, :x].min() < 128
    assert pixels[:y, x:].min() < 128


def test_a_long_name_does_not_widen_the_picture_without_end() -> None:
    info = info_of(classes=("x" * 500, "line\nbreak"))
    with Image.open(io.BytesIO(preview_png(random_tiles(info, 1), info))) as image:
        assert image.width < 400


DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
"""It has Latin, Greek, Cyrillic, Arabic and more, but no Chinese."""


@pytest.fixture
def only_dejavu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fonts, "FILES", ("no-such-font.ttf", str(DEJAVU)))
    fonts._fonts.cache_clear()
    yield
    fonts._fonts.cache_clear()


@pytest.mark.usefixtures("only_dejavu")
@pytest.mark.parametrize("name", ["épinette", "жук", "ضفدع", "Käfer"])
def test_a_name_is_drawn_by_a_font_that_has_it(name: str) -> None:
    label, font = preview._label(name, 3)
    assert label == name
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert font.path == str(DEJAVU)


@pytest.mark.usefixtures("only_dejavu")
def test_a_name_that_no_font_here_has_becomes_a_number() -> None:
    assert preview._label("青蛙", 3)[0] == "class 3"
    info = info_of(classes=("青蛙", "frog"))
    with_number = info_of(classes=("class 0", "frog"))
    tiles = random_tiles(info, 1)
    assert preview_png(tiles, info) == preview_png(tiles, with_number)


def test_a_large_set_is_not_enlarged() -> None:
    info = SetInfo(40, 2, tuple("abcdefgh"), (0.5,), (0.5,), 56, 1)
    with Image.open(io.BytesIO(preview_png(random_tiles(info, 40), info))) as image:
        assert image.width < 2600


def test_what_is_not_a_subset_of_this_set_is_refused() -> None:
    info = info_of()
    with pytest.raises(ConfigError, match="float64"):
        preview_png(random_tiles(info, 1).astype(float), info)
    with pytest.raises(ConfigError, match=r"\(1, 1,"):
        preview_png(random_tiles(info, 1)[:, :1], info)
    with pytest.raises(ConfigError, match="of this set has"):
        preview_png(random_tiles(info, 1)[:0], info)
    with pytest.raises(ConfigError, match="scale is 0"):
        preview_png(random_tiles(info, 1), info, scale=0)
