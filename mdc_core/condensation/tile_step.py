"""The optimisers of the tiles: state in, state out. All state is tensors, so that a GPU can record a step.

Frozen ranks keep their tiles bit for bit, and their momentum is reset (arXiv 2403.06075, Eq. 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mdc_core.config.settings import CondenseConfig

TileState = Mapping[str, Tensor]
"""By name: `tiles` and `momentum` (N, C, f², ch, s, s), and the method's other optimiser state."""
TileStep = Callable[[CondenseConfig, int, TileState, Tensor, Tensor], TileState]
"""From configuration, image side H, state, gradient (N, C, f², ch, s, s) and mask of free ranks (N, C, 1, 1, 1, 1), the
next state."""

_BETA_1, _BETA_2, _EPSILON = 0.5, 0.999, 1e-8
"""Of Adam."""


def sgd(config: CondenseConfig, image_size: int, now: TileState, gradient: Tensor, free: Tensor) -> TileState:
    """SGD with momentum and step size `config.tile_lr`. Tiles may leave [0, 1] until the outer loop ends."""
    momentum = torch.where(free, config.momentum * now["momentum"] + gradient, 0.0)
    tiles = now["tiles"].sub(momentum, alpha=config.tile_lr(image_size))
    return {"tiles": tiles, "momentum": momentum}


def adam_start(tiles: Tensor) -> TileState:
    """Adam's state beside the momentum (its first moment): the second moment, and the updates of every rank."""
    updates = torch.zeros((*tiles.shape[:2], 1, 1, 1, 1), device=tiles.device)
    return {"second_moment": torch.zeros_like(tiles), "updates": updates}


def adam(
    config: CondenseConfig, image_size: int, now: TileState, gradient: Tensor, free: Tensor
) -> TileState:
    """Adam (arXiv 1412.6980) with step size `lr_base` in pixel values; tiles stay in [0, 1].

    The bias correction counts the updates of each rank by itself. With a common count, a rank that has been frozen
    would take far too large steps.
    """
    updates = now["updates"] + free
    first = torch.where(free, torch.lerp(gradient, now["momentum"], _BETA_1), 0.0)
    moment = now["second_moment"]
    second = torch.where(free, torch.lerp(gradient.square(), moment, _BETA_2), moment)
    scale = (second / _bias_correction(_BETA_2, updates)).sqrt_().add_(_EPSILON)
    moved = now["tiles"] - config.lr_base * (first / _bias_correction(_BETA_1, updates)) / scale
    tiles = torch.where(free, moved.clamp_(0, 1), now["tiles"])
    return {"tiles": tiles, "momentum": first, "second_moment": second, "updates": updates}


def _bias_correction(beta: float, updates: Tensor) -> Tensor:
    """1 - beta^updates, the sum of a moment's weights."""
    return torch.expm1(updates * math.log(beta)).neg_()
