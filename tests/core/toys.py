"""Toy data and settings for the algorithm's tests: 2 classes of 16 images of 8x8 pixels."""

from __future__ import annotations

import torch

from mdc_core.config.settings import CondenseConfig, NetworkConfig
from mdc_core.data.normalisation import Normalisation
from mdc_core.data.real_set import RealSet

TOY_NETWORK = NetworkConfig(depth=2, width=8)
FEATURE: dict[str, object] = {
    "method": "feature",
    "subset_loss": "all",
    "pool": 2,
    "pool_samples": 24,
    "n_data": 0,
    "lr_base": 0.01,
}
"""Changes to `toy_config` for feature matching."""
DREAM: dict[str, object] = {"method": "dream", "init": "clusters", "batch_real": 4, "cluster_period": 2}
"""Changes to `toy_config` for DREAM."""
TOY_NORMALISATION = Normalisation((0.5,) * 3, (0.25,) * 3)


def toy_real(seed: int = 0, channels: int = 3, per_class: int = 16, side: int = 8) -> RealSet:
    """Two noisy classes that differ in brightness, so that a network can learn them."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(2, 1, channels, side, side, generator=generator)
    noise = torch.randn(2, per_class, channels, side, side, generator=generator) * 0.15
    images = ((base + noise).clamp(0, 1) * 255).to(torch.uint8).flatten(0, 1)
    labels = torch.arange(2).repeat_interleave(per_class)
    return RealSet(images, labels, ("dark", "light"), (0.5,) * channels, (0.25,) * channels)


def toy_config(**changes: object) -> CondenseConfig:
    """ipc 3, f 2, a few loops; every field can be changed."""
    settings = {
        "ipc": 3,
        "factor": 2,
        "network": TOY_NETWORK,
        "outer_loops": 6,
        "inner_iterations": 2,
        "mls_period": 2,
        "n_data": 16,
        "batch_real": 8,
        "batch_network": 8,
        "lr_base": 0.1,
    }
    return CondenseConfig.model_validate(settings | changes)
