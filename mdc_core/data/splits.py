"""Training and test images as the readers return them, and the hold-out for data without a test split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mdc_core.compute.streams import stream
from mdc_core.data.layouts import HOLD_OUT, held_out_of

Images = tuple[Tensor, Tensor]
"""Images (M, ch, H, W), uint8, and their labels (M,), int64."""


@dataclass(frozen=True)
class Splits:
    """Both splits of a data set, and its class names; a name's position is its label."""

    classes: tuple[str, ...]
    train: Images
    test: Images


def hold_out(labels: Tensor, classes: tuple[str, ...], share: float = HOLD_OUT) -> tuple[Tensor, Tensor]:
    """Split positions 0..M-1 into train and test, both ascending; `share` of every class goes to test.

    The choice is pseudo-random, but fixed: it depends only on the labels (M,). Each class keeps at least one image on
    either side.

    Raises:
        DataError: a class has fewer than two images.
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(classes):
        positions = (labels == label).nonzero().flatten()
        count = held_out_of(name, len(positions), share)
        order = torch.randperm(len(positions), generator=stream(0, "hold-out", label))
        held[positions[order[:count]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()
