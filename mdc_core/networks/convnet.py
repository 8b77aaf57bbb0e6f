"""ConvNet-D(depth): the small network of the condensation papers (arXiv 2006.05929, section 4)."""

from __future__ import annotations

from torch import Tensor, nn

from mdc_core.networks.base import Network
from mdc_core.networks.convolution import Conv2d
from mdc_core.networks.layers import Linear, NormReluPool

_LAYERS = 2
"""Of a block."""


class ConvNet(Network):
    """[conv 3x3 → instance norm, affine → ReLU → 2x2 average pool] · depth, then one linear layer."""

    def __init__(self, channels: int, image_size: int, classes: int, depth: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        side = image_size
        for block in range(depth):
            # 28-pixel grey images are padded to 32, so that they halve evenly.
            padding = 3 if block == 0 and channels == 1 and image_size == 28 else 1
            side = (side + 2 * padding - 2) // 2
            layers += [
                Conv2d(channels if block == 0 else width, width, 3, padding=padding, normed=True),
                NormReluPool(width, pool=2),
            ]
        self.blocks = nn.Sequential(*layers)
        self.linear = Linear(width * side * side, classes)

    def block_outputs(self, images: Tensor) -> list[Tensor]:
        """(B, width, h, w) after every pool: h = H / 2, H / 4, …, H / 2^depth."""
        outputs = []
        for position, layer in enumerate(self.blocks, start=1):
            images = layer(images)
            if position % _LAYERS == 0:
                outputs.append(images)
        return outputs

    def head(self, features: Tensor) -> Tensor:
        """Logits (B, C)."""
        out: Tensor = self.linear(features.flatten(1))
        return out
