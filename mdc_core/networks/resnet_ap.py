"""ResNet10-AP: a four-block residual network with average pooling for strides (IDC, arXiv 2205.14959, section 5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mdc_core.config.settings import resnet_stem
from mdc_core.networks.base import Network
from mdc_core.networks.convolution import Conv2d
from mdc_core.networks.layers import AveragePool, InstanceNorm, Linear, NormReluPool


class ResNetAP(Network):
    """A stem, then four stages of one basic block; instance norm; all convolutions have stride 1, then a pool."""

    def __init__(self, channels: int, image_size: int, classes: int, width: int) -> None:
        super().__init__()
        kernel, pool = resnet_stem(image_size)
        self.stem = nn.Sequential(
            Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
            NormReluPool(width, pool),
        )
        self.stages = nn.Sequential(
            _Block(width, width, pool=1),
            _Block(width, 2 * width, pool=2),
            _Block(2 * width, 4 * width, pool=2),
            _Block(4 * width, 8 * width, pool=2),
        )
        self.linear = Linear(8 * width, classes)

    def block_outputs(self, images: Tensor) -> list[Tensor]:
        """(B, width, h, w) of the stem, h being H / its pool (`resnet_stem`), then of every stage: 8·width at h / 8."""
        outputs = [self.stem(images)]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        return outputs

    def head(self, features: Tensor) -> Tensor:
        """Logits (B, C) of the features' mean over their area."""
        out: Tensor = self.linear(features.mean((2, 3)))
        return out


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the body shrinks after its first ReLU."""

    def __init__(self, before: int, after: int, pool: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Conv2d(before, after, 3, padding=1, bias=False),
            NormReluPool(after, pool),
            Conv2d(after, after, 3, padding=1, bias=False),
            InstanceNorm(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if pool > 1 or before != after:
            # The published shortcut pools what its convolution gives out: the same, with fewer pixels to convolve.
            self.shortcut = nn.Sequential(
                AveragePool(pool) if pool > 1 else nn.Identity(),
                Conv2d(before, after, 1, bias=False),
                InstanceNorm(after),
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.body(x) + self.shortcut(x))
