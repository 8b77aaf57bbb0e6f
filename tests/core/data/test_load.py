"""RealSet, DataSet and the dispatch of `load`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mdc_core.config.presets import NAMED
from mdc_core.config.settings import DataFacts
from mdc_core.data.load import load, load_folder, survey
from mdc_core.data.real_set import DataSet, RealSet, measure
from mdc_core.data.splits import hold_out
from mdc_core.errors import ConfigError, DataError
from tests.core.image_files import encoded, pixels, small_set, write_folder, write_zip


def _real(channels: int = 3, **changes: object) -> RealSet:
    values = {
        "images": torch.from_numpy(
            np.stack([pixels(seed) for seed in range(6)]).transpose(0, 3, 1, 2)[:, :channels]
        ),
        "labels": torch.tensor([2, 0, 1, 0, 2, 0]),
        "classes": ("a", "b", "c"),
        "mean": (0.5, 0.4, 0.3)[:channels],
        "std": (0.2, 0.3, 0.25)[:channels],
    }
    return RealSet(**(values | changes))  # type: ignore[arg-type]


def test_class_index_is_every_position_once_ascending() -> None:
    assert [positions.tolist() for positions in _real().class_index()] == [[1, 3, 5], [2], [0, 4]]


def test_floats_and_normalise_are_what_they_say() -> None:
    real = _real()
    floats = real.floats(torch.tensor([4, 1]))
    assert floats.dtype == torch.float32
    assert torch.equal(floats, real.images[[4, 1]].float() / 255)
    for dtype in (torch.float32, torch.float64):
        images = floats.to(dtype)
        normalised = real.normalise(images)
        assert normalised.dtype == dtype
        for channel in range(3):
            expected = (images[:, channel] - real.mean[channel]) / real.std[channel]
            torch.testing.assert_close(normalised[:, channel], expected)


def test_normalise_serves_autograd_after_inference() -> None:
    real = _real()
    with torch.inference_mode():
        real.normalise(real.floats(torch.tensor([0])))
    images = real.floats(torch.tensor([0])).requires_grad_()
    (gradient,) = torch.autograd.grad(real.normalise(images).sum(), images)
    expected = 1 / torch.tensor(real.std).view(1, 3, 1, 1)
    torch.testing.assert_close(gradient, expected.expand_as(gradient))


def test_subset_and_to_keep_what_they_do_not_change() -> None:
    real = _real()
    subset = real.subset(torch.tensor([5, 2, 0]))
    assert torch.equal(subset.images, real.images[[5, 2, 0]])
    assert subset.labels.tolist() == [0, 1, 2]
    assert [positions.tolist() for positions in subset.class_index()] == [[0], [1], [2]]
    moved = real.to("cpu")
    assert torch.equal(moved.images, real.images)
    assert (moved.classes, moved.mean, moved.std) == (real.classes, real.mean, real.std)
    with pytest.raises(DataError, match="'b' has no image"):
        real.subset(torch.tensor([0, 1]))


def test_facts() -> None:
    real = _real(channels=1)
    assert (real.channels, real.image_size, real.num_classes) == (1, 8, 3)
    expected = DataFacts(
        name="toys", channels=1, image_size=8, classes=("a", "b", "c"), smallest_class=1, images=6
    )
    assert real.facts("toys") == expected
    assert DataSet("toys", real, real).facts() == expected.model_copy(update={"test_images": 6})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(6, 3, 8, 8)}, "images are torch.float32"),
        ({"images": torch.zeros(6, 8, 8, dtype=torch.uint8)}, r"\(6, 8, 8\)"),
        ({"images": torch.zeros(6, 2, 8, 8, dtype=torch.uint8)}, "2 channels"),
        ({"images": torch.zeros(6, 3, 8, 9, dtype=torch.uint8)}, "9×8 pixels"),
        ({"images": torch.zeros(6, 3, 3, 3, dtype=torch.uint8)}, r"a side of 4\.\.1024"),
        ({"images": torch.zeros(0, 3, 8, 8, dtype=torch.uint8)}, "there are no images"),
        ({"labels": torch.tensor([0, 1, 2])}, r"must be int64 \(6,\)"),
        ({"labels": torch.tensor([0.0, 1, 2, 0, 1, 2])}, "labels are torch.float32"),
        ({"labels": torch.tensor([0, 1, 2, 3, 0, 0])}, "labels range from 0 to 3"),
        ({"labels": torch.tensor([0, 1, 2, -1, 0, 0])}, "labels range from -1 to 2"),
        ({"labels": torch.tensor([0, 0, 2, 2, 0, 0])}, "class 'b' has no image"),
        ({"labels": torch.zeros(6, dtype=torch.int64), "classes": ("a",)}, "at least two"),
        ({"classes": ("a", "b", "a")}, "'a' is given twice"),
        ({"mean": (0.5,)}, "mean is .*3 finite numbers"),
        ({"mean": (0.5, math.nan, 0.5)}, "mean is .*3 finite numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "every value must be positive"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _real(**changes)


@pytest.mark.parametrize(
    "other",
    [_real(classes=("a", "b", "x")), _real(mean=(0.1, 0.2, 0.3)), _real(channels=1)],
    ids=["classes", "mean", "channels"],
)
def test_splits_that_differ_are_refused(other: RealSet) -> None:
    with pytest.raises(DataError, match="they must be the same"):
        DataSet("toys", _real(), other)


@pytest.mark.parametrize("count", [6, 1500])
def test_measure_equals_the_direct_formula(count: int) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 200, (count, 3, 8, 8), dtype=np.uint8))
    images[:, 1] //= 3
    mean, std = measure(images)
    values = images.double() / 255
    assert mean == pytest.approx(values.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert std == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), rel=1e-12)


def test_measured_deviation_has_a_floor() -> None:
    mean, std = measure(torch.full((4, 1, 8, 8), 51, dtype=torch.uint8))
    assert mean == pytest.approx((0.2,))
    assert std == (1e-3,)


@settings(max_examples=40)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=5), st.floats(0.01, 0.99), st.integers(0, 9))
def test_hold_out_takes_its_share_of_every_class(counts: list[int], share: float, seed: int) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    classes = tuple(str(label) for label in range(len(counts)))
    kept, held = hold_out(labels, classes, share)
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())
    assert held.tolist() == sorted(held.tolist())
    for label, count in enumerate(counts):
        number = int((labels[held] == label).sum())
        assert 1 <= number < count
        assert abs(number - share * count) <= 1
    assert torch.equal(hold_out(labels, classes, share)[1], held)


def test_load_tells_files_by_content(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "x_train": np.stack([pixels(seed) for seed in range(6)]),
        "y_train": np.repeat([0, 1], 3),
        "x_test": np.stack([pixels(6), pixels(7)]),
        "y_test": np.array([0, 1]),
        "classes": np.array(["cat", "dog"]),
    }
    np.savez(tmp_path / "arrays.npz", **arrays)
    (tmp_path / "arrays.npz").rename(tmp_path / "arrays.zip")
    write_zip(tmp_path / "images.npz", small_set())
    write_folder(tmp_path / "folder", small_set())
    loaded = {name: load(str(tmp_path / name), tmp_path) for name in ("arrays.zip", "images.npz", "folder")}
    assert [data.name for data in loaded.values()] == ["arrays", "images", "folder"]
    first = loaded["folder"]
    assert first.train.mean == measure(first.train.images)[0]
    for data in loaded.values():
        assert torch.equal(data.train.images, first.train.images)
        assert torch.equal(data.test.images, first.test.images)
        assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert (data.train.mean, data.train.std) == (first.train.mean, first.train.std)
        assert data.test.mean == data.train.mean
        assert data.facts() == first.facts().model_copy(update={"name": data.name})


def test_load_passes_the_image_size_on(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", small_set())
    write_zip(tmp_path / "a.zip", small_set())
    for name in ("folder", "a.zip"):
        assert load(str(tmp_path / name), tmp_path, image_size=5).train.image_size == 5


@pytest.mark.parametrize("has_test", [False, True])
@pytest.mark.parametrize("kind", ["folder", "zip", "npz"])
def test_a_survey_tells_what_loading_gives(tmp_path: Path, kind: str, has_test: bool) -> None:
    files = {name: content for name, content in small_set().items() if has_test or name.startswith("train")}
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        test: dict[str, Any] = (
            {"x_test": np.zeros((2, 8, 8), np.uint8), "y_test": np.array([0, 1])} if has_test else {}
        )
        np.savez(path, x_train=np.zeros((5, 8, 8), np.uint8), y_train=np.array([0, 1, 0, 1, 0]), **test)
    else:
        (write_zip if kind == "zip" else write_folder)(path, files)
    facts = survey(str(path))
    unread = {"held_out": not has_test, "own_side": None if kind == "npz" else 8}
    assert facts == load(str(path), tmp_path).facts().model_copy(update=unread)


def test_a_survey_of_a_named_set_needs_no_data() -> None:
    assert survey("cifar10") == NAMED["cifar10"]
    with pytest.raises(ConfigError, match="image_size is 16, but the images of 'cifar10' are 32 pixels"):
        survey("cifar10", image_size=16)


def test_a_survey_refuses_what_loading_refuses(tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", x_train=np.zeros((4, 8, 9), np.uint8), y_train=np.array([0, 1, 0, 1]))
    np.savez(tmp_path / "one.npz", x_train=np.zeros((4, 8, 8), np.uint8), y_train=np.zeros(4, int))
    one = {name: content for name, content in small_set().items() if "cat" in name}
    write_folder(tmp_path / "one", one)
    for name, message in (
        ("wide.npz", "'wide'.*9×8 pixels"),
        ("one.npz", "1 class .*at least two"),
        ("one", "1 class .*at least two"),
    ):
        with pytest.raises(DataError, match=message):
            survey(str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"image_size is 2000: it must be 4\.\.1024"):
        survey(str(write_folder(tmp_path / "fine", small_set())), image_size=2000)


def test_load_refuses_to_resize_what_is_not_resized(tmp_path: Path) -> None:
    assert load("digits", tmp_path, image_size=8).train.image_size == 8
    with pytest.raises(ConfigError, match="image_size is 16, but the images of 'digits' are 8 pixels"):
        load("digits", tmp_path, image_size=16)
    np.savez(tmp_path / "a.npz", x_train=np.zeros((4, 8, 8), np.uint8), y_train=np.array([0, 1, 0, 1]))
    with pytest.raises(ConfigError, match=r"image_size is 16, but the images of .*a\.npz' are 8 pixels"):
        load(str(tmp_path / "a.npz"), tmp_path, image_size=16)


@pytest.mark.parametrize("source", ["no-such-set", "x" * 5000, "nul\0byte"])
def test_load_lists_the_named_sets_when_there_is_no_such_data(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError, match=", ".join(NAMED)):
        load(source, tmp_path)


def test_load_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(encoded(pixels(0)))
    with pytest.raises(DataError, match=r"a\.zip' is neither a zip nor an npz"):
        load(str(tmp_path / "a.zip"), tmp_path)


def test_a_fault_of_the_pixels_names_the_data_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", x_train=np.zeros((4, 8, 9), np.uint8), y_train=np.array([0, 1, 0, 1]))
    with pytest.raises(DataError, match=r"'wide'.*9×8 pixels"):
        load(str(tmp_path / "wide.npz"), tmp_path)
    one = {name: content for name, content in small_set().items() if "cat" in name}
    with pytest.raises(DataError, match=r"1 class \(cat\): give at least two"):
        load_folder(write_folder(tmp_path / "one", one))


def test_the_set_is_frozen() -> None:
    real = _real()
    with pytest.raises(AttributeError):
        real.mean = (0.0, 0.0, 0.0)  # type: ignore[misc]
    assert replace(real, mean=(0.1, 0.1, 0.1)).mean == (0.1, 0.1, 0.1)
