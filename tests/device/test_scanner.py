"""The digests of a file, taken while its bytes pass: every changed or missing byte is noticed."""

from __future__ import annotations

import io
import itertools
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mdc_core.delivery import rankmajor
from mdc_core.delivery.manifest import Manifest
from mdc_device.files import Scanner, scan

INFO = rankmajor.SetInfo(
    ipc=3, factor=2, classes=("cat", "Hündchen"), mean=(0.5,), std=(0.25,), image_size=7, channels=1
)
TILES = np.random.default_rng(0).integers(0, 256, INFO.tile_shape(INFO.ipc), dtype=np.uint8)
OBJECT = rankmajor.pack(TILES, INFO)
MANIFEST = cast(Manifest, SimpleNamespace(info=INFO, digests=rankmajor.digests(OBJECT, INFO)))
FILE = rankmajor.subset(OBJECT, INFO, 2)


def scanned(data: bytes | bytearray, k: int) -> Any:
    return scan(io.BytesIO(data), k, MANIFEST)


@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(position: int, difference: int) -> None:
    data = bytearray(FILE)
    data[position] ^= difference
    scanner = scanned(data, 2)
    assert not scanner.is_right
    start, size = 4096, INFO.rank_bytes
    assert scanner.bad_ranks == (() if position < start else ((position - start) // size + 1,))


def test_every_bad_or_missing_rank_is_named() -> None:
    assert scanned(OBJECT, 3).is_right
    data = bytearray(OBJECT)
    data[4096] ^= 1
    data[-1] ^= 1
    assert scanned(data, 3).bad_ranks == (1, 3)
    short = OBJECT[: 4096 + INFO.rank_bytes + 5]
    assert scanned(short, 3).bad_ranks == (2, 3) == rankmajor.missing_ranks(len(short), 3, INFO)


@given(st.lists(st.integers(0, len(FILE)), max_size=5))
def test_pieces_of_any_size_are_the_same(cuts: list[int]) -> None:
    scanner = Scanner(2, MANIFEST)
    ends = [0, *sorted(cuts), len(FILE)]
    for start, end in itertools.pairwise(ends):
        scanner.update(FILE[start:end])
    assert scanner.is_right
    assert scanner.bad_ranks == ()
