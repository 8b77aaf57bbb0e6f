"""Tiles: how they start, that decoding and cutting commute, and how they are rounded."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mdc_core.data.synthetic import SyntheticSet, initial_tiles
from mdc_core.errors import ConfigError
from tests.core.toys import toy_config, toy_real


def random_set(ipc: int = 4, side: int = 4, image_size: int = 7) -> SyntheticSet:
    return SyntheticSet(torch.rand(ipc, 3, 4, 2, side, side), image_size)


@pytest.mark.parametrize("image_size", [7, 8, 4])
def test_decode_and_prefix_commute(image_size: int) -> None:
    whole = random_set(image_size=image_size)
    images, labels = whole.images(), whole.labels()
    for k in range(1, 5):
        part = whole.subset(k)
        assert torch.equal(part.images(), images[: k * 3 * 4])
        assert torch.equal(part.labels(), labels[: k * 3 * 4])


def test_labels_follow_the_class_axis() -> None:
    marked = torch.arange(3.0).view(1, 3, 1, 1, 1, 1).expand(2, 3, 4, 1, 2, 2)
    decoded = SyntheticSet(marked, 4)
    assert torch.equal(decoded.images().mean((1, 2, 3)), decoded.labels().float())


@pytest.mark.parametrize("k", [0, 5, -1])
def test_a_subset_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=rf"k is {k}, .* 1\.\.4"):
        random_set().subset(k)


def test_real_init_takes_one_image_per_tile() -> None:
    """Every tile is a shrunk real image of its class, no image is used twice, and the order is not the set's."""
    real = toy_real()
    tiles = initial_tiles(toy_config(), real)
    assert tiles.shape == (3, 2, 4, 3, 4, 4)
    for label, positions in enumerate(real.class_index()):
        shrunk = F.interpolate(real.floats(positions), size=(4, 4), mode="nearest")
        own = tiles[:, label].flatten(0, 1)
        places = [(shrunk == tile).flatten(1).all(1).nonzero().flatten().tolist() for tile in own]
        assert all(len(place) == 1 for place in places)
        order = [place[0] for place in places]
        assert len(set(order)) == 12
        assert order != sorted(order)


def test_start_index_continues_the_same_permutation() -> None:
    """Baseline B: runs of one image each start from consecutive parts of what a larger run starts from."""
    real = toy_real()
    whole = initial_tiles(toy_config(ipc=3), real)
    for index in range(3):
        part = initial_tiles(toy_config(ipc=1, start_index=index), real)
        assert torch.equal(part[0], whole[index])


def test_noise_init_is_grey_on_average() -> None:
    tiles = initial_tiles(toy_config(init="noise", ipc=20), toy_real())
    assert 0 <= tiles.min() < 0.1
    assert 0.9 < tiles.max() <= 1
    assert float(tiles.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(tiles.std()) == pytest.approx(0.245, abs=0.02)


def test_tile_side_rounds_up() -> None:
    assert initial_tiles(toy_config(factor=3, ipc=1), toy_real()).shape[-2:] == (3, 3)


def test_rounding_is_half_to_even_and_clamped() -> None:
    levels = torch.tensor([-1.0, 0.0, 0.5 / 255, 1.5 / 255, 2.5 / 255, 1.0, 7.0], dtype=torch.float64)
    values = SyntheticSet(levels.view(1, 1, 1, 1, 1, -1), 7).quantised()
    assert values.flatten().tolist() == [0, 0, 0, 2, 2, 255, 255]


def test_delivered_is_within_half_a_level() -> None:
    exact = random_set()
    assert float((exact.delivered().tiles - exact.tiles).abs().max()) <= 0.5 / 255 + 1e-6
    assert torch.equal(exact.delivered().quantised(), exact.quantised())


def test_info_describes_the_set() -> None:
    real = toy_real()
    info = SyntheticSet(initial_tiles(toy_config(), real), 8).info(real)
    assert (info.ipc, info.factor, info.classes, info.image_size, info.channels) == (
        3,
        2,
        ("dark", "light"),
        8,
        3,
    )
