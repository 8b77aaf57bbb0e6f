"""How pixels become what networks see."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Normalisation:
    """How pixels in [0, 1] became the images that are augmented: (pixel - mean) / std, channel by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        """ch."""
        return len(self.mean)
