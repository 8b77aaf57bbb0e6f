"""How the tiles move, against torch's own optimiser and against a rank that is frozen for a while."""

from __future__ import annotations

import torch
from torch import Tensor

from mdc_core.compute.streams import stream
from mdc_core.condensation.tile_step import adam, adam_start
from tests.core.toys import FEATURE, toy_config

CONFIG = toy_config(**FEATURE)
SHAPE = (3, 2, 4, 1, 2, 2)


def start() -> dict[str, Tensor]:
    tiles = torch.rand(SHAPE, generator=stream(0, "tiles")) * 0.4 + 0.3
    return {"tiles": tiles, "momentum": torch.zeros_like(tiles), **adam_start(tiles)}


def gradient(update: int) -> Tensor:
    return torch.randn(SHAPE, generator=stream(0, "gradient", update)) * 10.0 ** -(update % 4)


def test_it_is_adam() -> None:
    now, free = start(), torch.ones(3, 2, 1, 1, 1, 1, dtype=torch.bool)
    leaf = now["tiles"].clone().requires_grad_()
    other = torch.optim.Adam([leaf], lr=CONFIG.lr_base, betas=(0.5, 0.999), eps=1e-8)
    for update in range(20):
        now = dict(adam(CONFIG, 8, now, gradient(update), free))
        leaf.grad = gradient(update)
        other.step()
    torch.testing.assert_close(now["tiles"], leaf.detach(), atol=1e-5, rtol=0)


def test_tiles_stay_in_range() -> None:
    now, free = start(), torch.ones(3, 2, 1, 1, 1, 1, dtype=torch.bool)
    for _ in range(100):
        now = dict(adam(CONFIG, 8, now, gradient(0), free))
    assert (now["tiles"].min().item(), now["tiles"].max().item()) == (0, 1)


def test_a_rank_that_was_frozen_goes_on_by_its_own_clock() -> None:
    """It stands still bit for bit, and then takes the steps of one whose momentum alone was lost."""
    free = torch.ones(3, 2, 1, 1, 1, 1, dtype=torch.bool)
    frozen = free.clone()
    frozen[0] = frozen[1, 1] = False
    now = start()
    now["tiles"][0, 0, 0, 0, 0, 0] = 1.5  # outside [0, 1], where a clamp would show
    for update in range(4):
        now = dict(adam(CONFIG, 8, now, gradient(update), free))
    now["tiles"][0, 0, 0, 0, 0, 0] = 1.5
    alone = {name: value.clone() for name, value in now.items()}
    alone["momentum"].zero_()
    for update in range(4, 9):
        moved = dict(adam(CONFIG, 8, now, gradient(update), frozen))
        still = ~frozen.expand(SHAPE)
        assert torch.equal(moved["tiles"][still], now["tiles"][still])
        assert not moved["momentum"][still].any()
        assert not torch.equal(moved["tiles"], now["tiles"])
        now = moved
    for update in range(9, 12):
        now, alone = (dict(adam(CONFIG, 8, each, gradient(update), free)) for each in (now, alone))
    assert torch.equal(now["tiles"][0], alone["tiles"][0])
    assert torch.equal(now["tiles"][1, 1], alone["tiles"][1, 1])
    assert now["updates"].flatten().tolist() == [7, 7, 12, 7, 12, 12]


def test_what_never_moved_is_left_alone() -> None:
    """Nothing is divided by its number of updates, which is none."""
    now, free = start(), torch.ones(3, 2, 1, 1, 1, 1, dtype=torch.bool)
    free[0] = False
    moved = adam(CONFIG, 8, now, gradient(0), free)
    assert all(value.isfinite().all() for value in moved.values())
    assert torch.equal(moved["tiles"][0], now["tiles"][0])
