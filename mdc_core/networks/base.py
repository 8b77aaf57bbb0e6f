"""The interface of every network: features, and logits from features."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class Network(nn.Module):
    """A classifier, split after its last convolution block. Norms are per sample, never over the batch."""

    @abstractmethod
    def block_outputs(self, images: Tensor) -> list[Tensor]:
        """Outputs (B, width, h, w) of all convolution blocks in order, for images (B, ch, H, H)."""

    def features(self, images: Tensor) -> Tensor:
        """Output (B, width, h, w) of the last convolution block, for images (B, ch, H, H)."""
        return self.block_outputs(images)[-1]

    @abstractmethod
    def head(self, features: Tensor) -> Tensor:
        """Logits (B, C) from features (B, width, h, w)."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) for images (B, ch, H, H)."""
        return self.head(self.features(images))
