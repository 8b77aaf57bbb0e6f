"""npz files: arrays come through, and every fault names its array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mdc_core.data.arrays import read_npz
from mdc_core.errors import DataError
from tests.core.image_files import overlapping, pixels, write_zip


def _arrays(**changes: Any) -> dict[str, Any]:
    """Two classes; a change to None leaves an array out."""
    arrays = {
        "x_train": np.stack([pixels(seed) for seed in range(6)]),
        "y_train": np.array([0, 1, 0, 1, 1, 0]),
        "x_test": np.stack([pixels(seed) for seed in (6, 7)]),
        "y_test": np.array([1, 0]),
        "classes": np.array(["cat", "dog"]),
    }
    return {name: value for name, value in (arrays | changes).items() if value is not None}


def _write(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, allow_pickle=True, **arrays)
    return path


def test_arrays_come_through(tmp_path: Path) -> None:
    arrays = _arrays()
    splits = read_npz(_write(tmp_path / "a.npz", arrays))
    assert splits.classes == ("cat", "dog")
    for split, (images, labels) in (("train", splits.train), ("test", splits.test)):
        np.testing.assert_array_equal(images.numpy(), arrays[f"x_{split}"].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(labels.numpy(), arrays[f"y_{split}"])
        assert images.is_contiguous()


@pytest.mark.parametrize("dtype", ["uint8", "int32", ">i8"])
@pytest.mark.parametrize("column", [False, True])
def test_labels_may_be_any_integers_and_a_column(tmp_path: Path, dtype: str, column: bool) -> None:
    labels = np.array([0, 1, 0, 1, 1, 0], dtype=dtype)
    arrays = _arrays(y_train=labels[:, None] if column else labels)
    assert read_npz(_write(tmp_path / "a.npz", arrays)).train[1].tolist() == [0, 1, 0, 1, 1, 0]


@pytest.mark.parametrize("axis", [False, True])
def test_grey_images_may_leave_out_the_channel(tmp_path: Path, axis: bool) -> None:
    grey = np.stack([pixels(seed, channels=1) for seed in range(6)])
    arrays = _arrays(x_train=grey[..., None] if axis else grey, x_test=None, y_test=None)
    splits = read_npz(_write(tmp_path / "a.npz", arrays))
    both = np.concatenate([splits.train[0].numpy(), splits.test[0].numpy()])
    assert both.shape == (6, 1, 8, 8)
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in grey)


def test_class_names_default_to_the_labels(tmp_path: Path) -> None:
    assert read_npz(_write(tmp_path / "a.npz", _arrays(classes=None))).classes == ("0", "1")


WRONG = {
    "no images": (_arrays(x_train=None), "no array 'x_train'"),
    "no labels": (_arrays(y_train=None), "no array 'y_train'"),
    "half a test split": (_arrays(y_test=None), "only one of x_test and y_test"),
    "floats": (_arrays(x_train=np.zeros((6, 8, 8, 3))), "'x_train' is float64: it must be uint8"),
    "NaN": (_arrays(x_test=np.full((2, 8, 8, 3), np.nan)), "'x_test' is float64: it must be uint8"),
    "channels first": (_arrays(x_train=np.zeros((6, 3, 8, 8), np.uint8)), r"'x_train' is \(6, 3, 8, 8\)"),
    "flat": (_arrays(x_train=np.zeros((6, 64), np.uint8)), r"'x_train' is \(6, 64\)"),
    "NaN labels": (_arrays(y_train=np.full(6, np.nan)), "'y_train' is float64"),
    "NaN labels, no names": (_arrays(y_train=np.full(6, np.nan), classes=None), "'y_train' is float64"),
    "one-hot": (_arrays(y_train=np.eye(2, dtype=int)[[0, 1, 0, 1, 1, 0]]), r"'y_train' is int64 \(6, 2\)"),
    "length": (_arrays(y_train=np.array([0, 1])), "'x_train' has 6 images, but 'y_train' has 2 labels"),
    "negative": (_arrays(y_train=np.array([0, 1, -1, 1, 1, 0])), "'y_train' has the label -1"),
    "too high": (_arrays(y_test=np.array([0, 2])), "'y_test' has the label 2"),
    "huge": (
        _arrays(y_train=np.array([0, 10**12] * 3), classes=None),
        "'y_train' has the label 1000000000000",
    ),
    "wraps": (_arrays(y_test=np.array([0, 2**64 - 1], dtype=np.uint64)), "label 18446744073709551615"),
    "empty": (_arrays(x_train=np.zeros((0, 8, 8), np.uint8), y_train=np.zeros(0, int)), "'x_train' is empty"),
    "empty test": (
        _arrays(x_test=np.zeros((0, 8, 8), np.uint8), y_test=np.zeros(0, int)),
        "'x_test' is empty",
    ),
    "numbers as names": (_arrays(classes=np.array([1, 2])), "'classes' is int64"),
    "pickled": (_arrays(x_train=np.array([{}] * 6, dtype=object)), "x_train. is object"),
    "lonely class": (
        _arrays(y_train=np.array([0, 1, 0, 0, 0, 0]), x_test=None, y_test=None),
        "'dog' has 1 training image",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_array_is_named(tmp_path: Path, fault: str) -> None:
    arrays, message = WRONG[fault]
    with pytest.raises(DataError, match=message):
        read_npz(_write(tmp_path / "a.npz", arrays))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no zip at all")
    with pytest.raises(DataError, match="not an npz file"):
        read_npz(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"cannot be read as arrays|no array"):
        read_npz(write_zip(tmp_path / "b.npz", {"x_train.npy": b"\x93NUMPY\x01\x00garbage"}))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_an_error_of_the_data_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path = _write(tmp_path / "a.npz", _arrays())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        splits = read_npz(path)
    except DataError:
        pass
    else:
        assert len(splits.train[0]) == len(splits.train[1])


@pytest.mark.parametrize("which", ["first", "last"])
def test_members_that_share_bytes_are_refused(tmp_path: Path, which: str) -> None:
    with pytest.raises(DataError, match="overlap"):
        read_npz(overlapping(_write(tmp_path / "a.npz", _arrays()), which))
