"""The shapes of the networks: layers are built from them, costs are counted from them. Imports no torch.

Images are square with side H, in pixels. Every convolution has stride 1 and an instance norm behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mdc_core.errors import ConfigError


@dataclass(frozen=True)
class Convolution:
    """Convolution and instance norm, then ReLU and average pool where the network has them."""

    inputs: int
    outputs: int
    kernel: int
    padding: int
    side: int
    """H of the input."""
    bias: bool = False
    relu: bool = True
    pool: int = 1
    """Side of the pooled squares; 1: no pool."""

    @property
    def out_side(self) -> int:
        """H before the pool."""
        return self.side + 2 * self.padding - self.kernel + 1

    @property
    def pooled_side(self) -> int:
        """H after the pool; what does not fill a square is dropped."""
        return self.out_side // self.pool

    @property
    def parameters(self) -> int:
        """Weight, bias, and the norm's scale and shift."""
        return self.kernel**2 * self.inputs * self.outputs + self.outputs * (2 + self.bias)

    @property
    def flops(self) -> int:
        """Operations of the forward pass per image: 2 per multiply-add."""
        return 2 * self.kernel**2 * self.inputs * self.outputs * self.out_side**2

    @property
    def activations(self) -> int:
        """Values kept for the backward pass per image: inputs of the norm, outputs of the ReLU and of the pool."""
        kept = self.outputs * self.out_side**2 * (1 + self.relu)
        return kept + (self.outputs * self.pooled_side**2 if self.pool > 1 else 0)


@dataclass(frozen=True)
class Residual:
    """Two convolutions beside a shortcut, and a ReLU on their sum."""

    body: tuple[Convolution, Convolution]
    shortcut: Convolution | None
    """1×1, on the pooled input; None: the input itself."""
    pool: int
    """Of the input on its way to the shortcut; the body's first convolution pools by as much."""

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """All of them, in the order of the forward pass."""
        return self.body if self.shortcut is None else (*self.body, self.shortcut)

    @property
    def activations(self) -> int:
        """Values kept for the backward pass per image."""
        last = self.body[-1]
        pooled = self.shortcut.inputs * last.side**2 if self.shortcut is not None and self.pool > 1 else 0
        return sum(c.activations for c in self.convolutions) + pooled + last.outputs * last.out_side**2


@dataclass(frozen=True)
class Geometry:
    """A network: blocks of convolutions, and one linear layer behind them."""

    blocks: tuple[Convolution | Residual, ...]
    features: int
    """Inputs of the linear layer."""
    classes: int

    def convolutions(self) -> Iterator[Convolution]:
        """All of them, in the order of the forward pass."""
        for block in self.blocks:
            yield from (block,) if isinstance(block, Convolution) else block.convolutions

    @property
    def parameters(self) -> int:
        """Trained numbers."""
        return sum(c.parameters for c in self.convolutions()) + (self.features + 1) * self.classes

    @property
    def activations(self) -> int:
        """Values kept for the backward pass per image; the image itself is data."""
        return sum(block.activations for block in self.blocks)

    @property
    def first_flops(self) -> int:
        """Operations of the first convolution's forward pass per image."""
        return next(self.convolutions()).flops

    @property
    def head_flops(self) -> int:
        """Operations of the linear layer's forward pass per image."""
        return 2 * self.features * self.classes

    @property
    def flops(self) -> int:
        """Operations of the whole forward pass per image."""
        return sum(c.flops for c in self.convolutions()) + self.head_flops


def convnet(depth: int, width: int, channels: int, image_size: int, classes: int) -> Geometry:
    """ConvNet-D(depth): [conv 3×3 → instance norm → ReLU → 2×2 average pool] × depth, linear head (arXiv 2006.05929).

    Raises:
        ConfigError: the image cannot be halved `depth` times.
    """
    # Grey images of 28 pixels are padded to 32, so that they halve evenly.
    padding = 3 if (channels, image_size) == (1, 28) else 1
    blocks: list[Convolution] = []
    inputs, side = channels, image_size
    for _ in range(depth):
        block = Convolution(inputs, width, 3, padding, side, bias=True, pool=2)
        if block.pooled_side < 1:
            raise ConfigError(
                f"depth is {depth}, but images of {image_size} pixels can be halved {len(blocks)} times: "
                "lower the depth"
            )
        blocks.append(block)
        inputs, side, padding = width, block.pooled_side, 1
    return Geometry(tuple(blocks), width * side**2, classes)


def resnet_ap(width: int, channels: int, image_size: int, classes: int) -> Geometry:
    """ResNet10-AP: a stem and four residual blocks; pools replace strides (arXiv 2205.14959, section 5)."""
    kernel, pool = _stem(image_size)
    stem = Convolution(channels, width, kernel, kernel // 2, image_size, pool=pool)
    blocks: list[Convolution | Residual] = [stem]
    before, side = width, stem.pooled_side
    for after, pool in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        first = Convolution(before, after, 3, 1, side, pool=pool)
        side = first.pooled_side
        second = Convolution(after, after, 3, 1, side, relu=False)
        shortcut = Convolution(before, after, 1, 0, side, relu=False) if pool > 1 else None
        blocks.append(Residual((first, second), shortcut, pool))
        before = after
    return Geometry(tuple(blocks), 8 * width, classes)


def _stem(image_size: int) -> tuple[int, int]:
    """Side of the stem's kernel and of its pool: small images keep their pixels, as in IDC's code."""
    if image_size <= 64:
        return 3, 1
    return (3, 2) if image_size <= 128 else (7, 4)
