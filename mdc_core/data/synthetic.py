"""The synthetic set: tiles by rank, their initialisation, and decoding to images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mdc_core.compute.streams import stream
from mdc_core.config.settings import CondenseConfig, check_k
from mdc_core.data.real_set import RealSet
from mdc_core.delivery.rankmajor import SetInfo
from mdc_core.errors import ConfigError


@dataclass(frozen=True)
class SyntheticSet:
    """Tiles (N, C, f², ch, s, s), float in [0, 1], not normalised. Axis 0 is the rank, axis 1 the label."""

    tiles: Tensor
    image_size: int
    """H: the side that tiles are enlarged to."""

    @property
    def factor(self) -> int:
        """f: every image holds f x f tiles."""
        return math.isqrt(self.tiles.shape[2])

    def subset(self, k: int) -> SyntheticSet:
        """The first k images of every class, as a view of this set. `ConfigError` unless k is in 1..N."""
        return SyntheticSet(self.tiles[: check_k(k, len(self.tiles))], self.image_size)

    def images(self) -> Tensor:
        """Decoded images (N·C·f², ch, H, H) in [0, 1], rank by rank, so that every subset is a prefix."""
        return decode(self.tiles.flatten(0, 2), self.image_size)

    def labels(self) -> Tensor:
        """Labels (N·C·f²,), int64, of `images`."""
        ranks, classes, per_image = self.tiles.shape[:3]
        labels = torch.arange(classes, device=self.tiles.device).repeat_interleave(per_image)
        return labels.repeat(ranks)

    def quantised(self) -> Tensor:
        """The tiles as delivered: uint8, value · 255, rounded half to even."""
        return (self.tiles.clamp(0, 1) * 255).round().to(torch.uint8)

    def delivered(self) -> SyntheticSet:
        """This set as devices see it, after rounding to 8 bits."""
        return SyntheticSet(self.quantised().float() / 255, self.image_size)

    def info(self, real: RealSet) -> SetInfo:
        """The description of this set in the delivery format."""
        ranks, _, _, channels = self.tiles.shape[:4]
        return SetInfo(
            ipc=ranks,
            factor=self.factor,
            classes=real.classes,
            mean=real.mean,
            std=real.std,
            image_size=self.image_size,
            channels=channels,
        )


def decode(tiles: Tensor, image_size: int) -> Tensor:
    """Enlarge tiles (B, ch, s, s) bilinearly to (B, ch, H, H), corners not aligned (IDC, section 3.1)."""
    if tiles.shape[-1] == image_size:
        return tiles
    size = (image_size, image_size)
    if tiles.device.type == "cuda":
        # Torch's contiguous kernel has one thread per pixel of a single image; the channels-last kernel, of all images.
        planes = tiles.flatten(0, 1)[None].contiguous(memory_format=torch.channels_last)
        enlarged = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
        return enlarged.reshape(*tiles.shape[:2], *size).contiguous()
    return F.interpolate(tiles, size=size, mode="bilinear", align_corners=False)


def shrink(images: Tensor, side: int) -> Tensor:
    """Shrink images (B, ch, H, H) to tiles (B, ch, s, s) with nearest neighbour, so that 8-bit values stay exact."""
    return F.interpolate(images, size=(side, side), mode="nearest")


def initial_tiles(config: CondenseConfig, real: RealSet, chosen: Sequence[Tensor] | None = None) -> Tensor:
    """The tiles (N, C, f², ch, s, s) before the first step, float32 in [0, 1].

    `real`: tile j = rank · f² + position of class c is image start_index · N · f² + j of a permutation of the class,
    shrunk with nearest neighbour. The permutation depends only on the seed. (The released code uses the data set's
    order, but in sorted folders neighbours are alike.) `noise`: N(0.5, 0.25), clamped.

    Args:
        chosen: for init `clusters`, by class, the positions (N·f²,) of the real images to start from.

    Raises:
        ConfigError: a class has too few images.
    """
    config.check_data(real.facts("the data set"))
    assert (chosen is not None) == (config.init == "clusters")
    side = config.tile_side(real.image_size)
    per_class = config.ipc * config.factor**2
    shape = (config.ipc, config.factor**2, real.channels, side, side)
    if config.init == "noise":
        noise = torch.randn(real.num_classes, *shape, generator=stream(config.seed, "init"))
        return (noise * 0.25 + 0.5).clamp(0, 1).transpose(0, 1).contiguous().to(real.device)
    first = config.start_index * per_class
    classes = []
    for label, positions in enumerate(real.class_index()):
        if len(positions) < first + per_class:
            raise ConfigError(
                f"class {real.classes[label]!r} has {len(positions)} images, but {first + per_class} are needed: lower "
                "ipc, factor or start_index"
            )
        order = torch.randperm(len(positions), generator=stream(config.seed, "init", label))
        images = positions[order[first : first + per_class]] if chosen is None else chosen[label]
        classes.append(shrink(real.floats(images), side).view(shape))
    return torch.stack(classes, dim=1).contiguous()  # (N, C, f², ch, s, s)
