"""ConvNet-D(depth): the small network of the condensation papers (arXiv 2006.05929, section 4)."""

from __future__ import annotations

from torch import Tensor, nn

from mdc_core import geometry
from mdc_core.networks.base import Network
from mdc_core.networks.convolution import Conv2d
from mdc_core.networks.layers import Linear, NormReluPool

_LAYERS_PER_BLOCK = 2


class ConvNet(Network):
    """[conv 3×3 → instance norm, affine → ReLU → 2×2 average pool] × depth, then one linear layer."""

    def __init__(self, channels: int, image_size: int, classes: int, depth: int, width: int) -> None:
        super().__init__()
        shape = geometry.convnet(depth, width, channels, image_size, classes)
        layers: list[nn.Module] = []
        for block in shape.convolutions():
            layers += [Conv2d.of(block), NormReluPool(block.outputs, block.pool)]
        self.blocks = nn.Sequential(*layers)
        self.linear = Linear(shape.features, classes)

    def block_outputs(self, images: Tensor) -> list[Tensor]:
        """(B, width, h, w) after every pool: h = H / 2, H / 4, …, H / 2^depth."""
        outputs = []
        for position, layer in enumerate(self.blocks, start=1):
            images = layer(images)
            if position % _LAYERS_PER_BLOCK == 0:
                outputs.append(images)
        return outputs

    def head(self, features: Tensor) -> Tensor:
        """Logits (B, C)."""
        out: Tensor = self.linear(features.flatten(1))
        return out
