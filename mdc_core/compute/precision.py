"""The precision of products on a GPU: never lower than requested."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mdc_core.config.settings import Precision


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """Compute convolutions and matrix products in full float32, or with factors rounded to TF32.

    By default torch rounds convolutions only. Its settings are restored at the end.
    """
    backends = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee" if precision == "float32" else "tf32"
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value
