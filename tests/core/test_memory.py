"""What does not fit into memory is kept in a file, and is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mdc_core.condensation.condense import condense
from mdc_core.data.allocate import allocate
from mdc_core.data.load import load_npz, load_zip
from mdc_core.system import memory
from tests.core.image_files import encoded, pixels, small_set, write_zip
from tests.core.toys import toy_config


def write_npz(path: Path, **more: object) -> Path:
    images = np.stack([pixels(seed) for seed in range(40)])
    np.savez_compressed(path, x_train=images, y_train=np.arange(40) % 2, **more)  # type: ignore[arg-type]
    return path


def is_mapped(images: torch.Tensor) -> bool:
    """Whether a tensor's memory is that of a file."""
    pages = Path("/proc/self/maps").read_text().splitlines()
    for page in pages:
        start, end = (int(bound, 16) for bound in page.split()[0].split("-"))
        if start <= images.data_ptr() < end:
            return page.endswith("(deleted)")  # of a file that has no name any more
    raise AssertionError("the tensor is nowhere")


def test_room_is_in_memory_only_while_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < memory.total_bytes() < 2**60
    monkeypatch.setattr(memory, "total_bytes", lambda: 1000)
    assert not isinstance(allocate((5, 100)), np.memmap)
    mapped = allocate((5, 101))
    assert isinstance(mapped, np.memmap)
    mapped[:] = 7
    assert int(mapped.sum()) == 7 * 505


@pytest.mark.parametrize("has_test", [True, False])
def test_an_npz_larger_than_memory_condenses_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_test: bool
) -> None:
    test = {"x_test": np.stack([pixels(90), pixels(91)]), "y_test": np.array([0, 1])} if has_test else {}
    path = write_npz(tmp_path / "a.npz", **test)
    inside = load_npz(path)
    monkeypatch.setattr(memory, "total_bytes", lambda: 1000)
    outside = load_npz(path)
    assert is_mapped(outside.train.images)
    assert not is_mapped(inside.train.images)
    for one, other in ((inside.train, outside.train), (inside.test, outside.test)):
        assert torch.equal(one.images, other.images)
        assert one.fingerprint() == other.fingerprint()
    config = toy_config(outer_loops=1)
    first, second = next(condense(config, inside.train)), next(condense(config, outside.train))
    assert torch.equal(first.state.tiles, second.state.tiles)


def test_an_archive_larger_than_memory_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The last image makes all of them coloured.
    path = write_zip(tmp_path / "a.zip", {**small_set(channels=1), "train/dog/9.png": encoded(pixels(9))})
    inside = load_zip(path)
    monkeypatch.setattr(memory, "total_bytes", lambda: 1000)
    outside = load_zip(path)
    assert is_mapped(outside.train.images)
    assert torch.equal(inside.train.images, outside.train.images)
    assert outside.train.channels == 3
