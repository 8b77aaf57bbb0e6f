"""Fixtures of the algorithm's tests."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():  # before Triton is imported: its kernels then run on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

from mdc_core.data.real_set import RealSet
from mdc_core.networks import layers
from tests.core.toys import toy_real


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    """Toy sizes are slower with threads than without."""
    torch.set_num_threads(1)


@pytest.fixture
def plain_pooling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pooling without the matrix product, most of whose operations are on zeros: for those who count."""
    monkeypatch.setattr(layers, "_WIDEST_PRODUCT", 0)


@pytest.fixture
def real() -> RealSet:
    return toy_real()
