"""Normalisation of pixels for networks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Normalisation:
    """Normalise pixels in [0, 1] per channel: (pixel - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        """ch."""
        return len(self.mean)
