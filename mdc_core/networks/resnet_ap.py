"""ResNet10-AP: a residual network with average pools in place of strides (IDC, arXiv 2205.14959, section 5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mdc_core import geometry
from mdc_core.networks.base import Network
from mdc_core.networks.convolution import Conv2d
from mdc_core.networks.layers import AveragePool, InstanceNorm, Linear, NormReluPool


class ResNetAP(Network):
    """A stem, four residual blocks, the mean over the area, and one linear layer; all norms are instance norms."""

    def __init__(self, channels: int, image_size: int, classes: int, width: int) -> None:
        super().__init__()
        shape = geometry.resnet_ap(width, channels, image_size, classes)
        layers: list[nn.Module] = [
            nn.Sequential(Conv2d.of(block), NormReluPool(block.outputs, block.pool))
            if isinstance(block, geometry.Convolution)
            else _Block(block)
            for block in shape.blocks
        ]
        self.stem, *stages = layers
        self.stages = nn.Sequential(*stages)
        self.linear = Linear(shape.features, classes)

    def block_outputs(self, images: Tensor) -> list[Tensor]:
        """(B, width, h, w) of the stem, with h = H / its pool, then of every stage: the last is 8·width at h / 8."""
        outputs = [self.stem(images)]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        return outputs

    def head(self, features: Tensor) -> Tensor:
        """Logits (B, C) of the features' mean over their area."""
        out: Tensor = self.linear(features.mean((2, 3)))
        return out


class _Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut; the body pools after its first ReLU."""

    def __init__(self, shape: geometry.Residual) -> None:
        super().__init__()
        first, second = shape.body
        self.body = nn.Sequential(
            Conv2d.of(first),
            NormReluPool(first.outputs, first.pool),
            Conv2d.of(second),
            InstanceNorm(second.outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if shape.shortcut is not None:
            # The published shortcut pools the output of its 1×1 convolution. Both are linear, so their order does not
            # matter; pooling first leaves fewer pixels to convolve.
            self.shortcut = nn.Sequential(
                AveragePool(shape.pool),
                Conv2d.of(shape.shortcut),
                InstanceNorm(shape.shortcut.outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.body(x) + self.shortcut(x))
