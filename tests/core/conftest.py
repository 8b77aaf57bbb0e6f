"""Fixtures of the algorithm's tests."""

from __future__ import annotations

import pytest
import torch

from mdc_core.data import RealSet
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
