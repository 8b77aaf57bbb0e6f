"""How a gradient moves the tiles: state in, state out, all of it tensors, so that a GPU can record it.

Frozen ranks keep their tiles bit for bit, and lose their momentum (arXiv 2403.06075, Eq. 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mdc_core.config.settings import CondenseConfig

TileState = Mapping[str, Tensor]
"""`tiles` and `momentum` (N, C, f², ch, s, s), and what else a method keeps, by name."""
TileStep = Callable[[CondenseConfig, int, TileState, Tensor, Tensor], TileState]
"""Of the configuration, the image side H, what there is, the gradient, and which ranks are free (N, C, 1, 1, 1, 1)."""

_FIRST, _SECOND, _LEAST = 0.5, 0.999, 1e-8
"""β1, β2 and ε of Adam."""


def sgd(config: CondenseConfig, image_size: int, now: TileState, gradient: Tensor, free: Tensor) -> TileState:
    """Descend with momentum, by `config.tile_lr`; tiles may leave [0, 1] until the outer loop ends."""
    momentum = torch.where(free, config.momentum * now["momentum"] + gradient, 0.0)
    tiles = now["tiles"].sub(momentum, alpha=config.tile_lr(image_size))
    return {"tiles": tiles, "momentum": momentum}


def adam_start(tiles: Tensor) -> TileState:
    """What Adam keeps beside the momentum, its first moment: the second moment, and the updates of every rank."""
    updates = torch.zeros((*tiles.shape[:2], 1, 1, 1, 1), device=tiles.device)
    return {"second_moment": torch.zeros_like(tiles), "updates": updates}


def adam(
    config: CondenseConfig, image_size: int, now: TileState, gradient: Tensor, free: Tensor
) -> TileState:
    """Descend by Adam (arXiv 1412.6980), by `lr_base` in units of pixels, and stay in [0, 1].

    The bias of the moments is corrected by the updates that a rank has had itself: one that was frozen for a while
    would take far too large steps otherwise.
    """
    updates = now["updates"] + free
    first = torch.where(free, torch.lerp(gradient, now["momentum"], _FIRST), 0.0)
    moment = now["second_moment"]
    second = torch.where(free, torch.lerp(gradient.square(), moment, _SECOND), moment)
    size = (second / _share(_SECOND, updates)).sqrt_().add_(_LEAST)
    moved = now["tiles"] - config.lr_base * (first / _share(_FIRST, updates)) / size
    tiles = torch.where(free, moved.clamp_(0, 1), now["tiles"])
    return {"tiles": tiles, "momentum": first, "second_moment": second, "updates": updates}


def _share(decay: float, updates: Tensor) -> Tensor:
    """1 - decay^updates: what the weights of a moment's terms add up to."""
    return torch.expm1(updates * math.log(decay)).neg_()
