"""Decoding: numpy enlarges as torch does, in the order that makes a smaller subset a prefix of a larger one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from mdc_core.delivery import rankmajor
from mdc_core.errors import FormatError
from mdc_device.decode import open_subset, upsample

pytestmark = pytest.mark.process

INFO = rankmajor.SetInfo(4, 2, ("a", "b", "c"), (0.5,) * 3, (0.2,) * 3, image_size=7, channels=3)
TILES = np.random.default_rng(0).integers(0, 256, INFO.tile_shape(4), dtype=np.uint8)
OBJECT = rankmajor.pack(TILES, INFO)


def stored(folder: Path, k: int) -> Path:
    path = folder / f"subset-{k}"
    path.write_bytes(rankmajor.subset(OBJECT, INFO, k))
    return path


@pytest.mark.parametrize(
    ("source", "side"), [(4, 8), (16, 32), (10, 28), (75, 224), (7, 7), (1, 5), (3, 8), (2, 7)]
)
def test_enlargement_is_that_of_torch(source: int, side: int) -> None:
    torch = pytest.importorskip("torch")
    tiles = np.random.default_rng(source).random((3, 2, source, source), dtype=np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(tiles), size=(side, side), mode="bilinear", align_corners=False
    )
    found = upsample(tiles, side)
    assert found.dtype == np.float32
    # Whether torch rounds a sample's position once or twice depends on the processor: 224 · 2⁻²⁴ of a pixel.
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1.4e-5)


def test_a_worked_example() -> None:
    found = upsample(np.array([[0.0, 1.0], [2.0, 3.0]], dtype=np.float32), 4)
    line = np.array([0.0, 0.25, 0.75, 1.0])
    np.testing.assert_allclose(found, line + 2 * line[:, None])


def test_images_and_labels_are_rank_major(tmp_path: Path) -> None:
    subset = open_subset(stored(tmp_path, 3))
    images, labels = subset.images(), subset.labels()
    assert images.shape == (3 * 3 * 4, 3, 7, 7)
    assert images.dtype == np.float32
    assert (images.min() >= 0, images.max() <= 1) == (True, True)
    position = 0
    for rank in range(3):
        for label in range(3):
            for tile in range(4):
                expected = upsample(TILES[rank, label, tile].astype(np.float32) / np.float32(255), 7)
                np.testing.assert_array_equal(images[position], expected)
                assert labels[position] == label
                position += 1


def test_a_smaller_subset_is_a_prefix(tmp_path: Path) -> None:
    small, large = open_subset(stored(tmp_path, 2)), open_subset(stored(tmp_path, 4))
    assert (small.k, large.k) == (2, 4)
    count = len(small.labels())
    np.testing.assert_array_equal(small.images(), large.images()[:count])
    np.testing.assert_array_equal(small.labels(), large.labels()[:count])


def test_the_safetensors_package_reads_the_same(tmp_path: Path) -> None:
    path = stored(tmp_path, 3)
    subset = open_subset(path)
    with safe_open(path, framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("tiles"), subset.tiles)
        assert file.metadata()["format"] == "rankmajor/1"
        assert file.metadata()["ipc"] == "4"
    assert subset.info == INFO


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="fetch it again"):
        open_subset(path)


def test_a_device_loads_neither_torch_nor_pydantic() -> None:
    heavy = "{'torch', 'pydantic', 'fastapi', 'PIL', 'safetensors', 'server', 'worker'}"
    code = f"import sys, mdc_device.cli, mdc_device.decode; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "set()"
