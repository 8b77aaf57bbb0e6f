"""How exactly products are computed on a GPU: never less exactly than was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mdc_core.config.settings import Precision


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """Convolutions and matrix products in full float32, or with factors rounded to TF32.

    Torch rounds convolutions by default; its setting is put back at the end.
    """
    places = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee" if precision == "float32" else "tf32"
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
