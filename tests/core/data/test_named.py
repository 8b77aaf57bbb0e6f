"""Named sets: small files in the true formats, read by the true torchvision classes."""

from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from sklearn.datasets import load_digits
from torchvision import datasets

from mdc_core.config.presets import NAMED, PRESETS
from mdc_core.data.load import load_named
from mdc_core.errors import DataError
from tests.core.image_files import encoded, pixels, write_folder

RNG = np.random.default_rng(0)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _random(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def _labels(classes: int, count: int) -> np.ndarray:
    """Every class at least once, in no order."""
    return RNG.permutation(np.arange(count) % classes)


def test_digits() -> None:
    data = load_named("digits", Path("nowhere"))
    bunch = load_digits()
    original = {
        image.astype(np.uint8).tobytes(): label
        for image, label in zip(bunch.images, bunch.target, strict=True)
    }
    assert data.facts() == NAMED["digits"]
    assert (len(data.train.labels), len(data.test.labels)) == (1438, 359)
    seen = []
    for split in (data.train, data.test):
        for image, label in zip(split.images, split.labels, strict=True):
            # 0..16 back from 0..255; rounding to whole numbers loses nothing, because the steps are 15.9 apart
            key = np.rint(image[0].numpy() * (16 / 255)).astype(np.uint8).tobytes()
            assert original[key] == int(label)
            seen.append(key)
    assert sorted(seen) == sorted(image.astype(np.uint8).tobytes() for image in bunch.images)
    assert int(data.train.images.max()) == 255
    again = load_named("digits", Path("nowhere"))
    assert torch.equal(again.test.images, data.test.images)
    normalised = data.train.normalise(data.train.floats(torch.arange(1438)))
    assert float(normalised.mean()) == pytest.approx(0, abs=1e-5)
    assert float(normalised.std(correction=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    classes, key, label_key = (
        (10, "label_names", "labels") if name == "cifar10" else (100, "fine_label_names", "fine_labels")
    )
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    names = [f"{name} {label}" for label in range(classes)]
    written: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"train_list": [], "test_list": []}
    for which, batches in written.items():
        checksums = []
        for file, _ in getattr(kind, which):
            images, labels = _random(classes + 3, 3072), _labels(classes, classes + 3)
            (folder / file).write_bytes(pickle.dumps({"data": images, label_key: labels.tolist()}))
            checksums.append([file, _md5(folder / file)])
            batches.append((images, labels))
        monkeypatch.setattr(kind, which, checksums)
    meta = folder / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({key: names}))
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": _md5(meta)})

    data = load_named(name, tmp_path)
    assert data.train.classes == tuple(names)
    assert (data.train.mean, data.train.std) == (PRESETS[name].mean, PRESETS[name].std)
    for split, which in ((data.train, "train_list"), (data.test, "test_list")):
        images = np.concatenate([images for images, _ in written[which]])
        np.testing.assert_array_equal(split.images.numpy(), images.reshape(-1, 3, 32, 32))
        np.testing.assert_array_equal(
            split.labels.numpy(), np.concatenate([labels for _, labels in written[which]])
        )

    (folder / kind.test_list[0][0]).write_bytes(b"damaged")
    with pytest.raises(DataError, match=rf"'{name}'.*{kind.base_folder}.*corrupted"):
        load_named(name, tmp_path)


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, written = {}, {}
    for split in ("train", "test"):
        file = f"{split}_32x32.mat"
        images, labels = _random(32, 32, 3, 14), _labels(10, 14)
        savemat(
            tmp_path / file, {"X": images, "y": np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]}
        )
        files[split] = ["", file, _md5(tmp_path / file)]
        written[split] = images, labels
    monkeypatch.setattr(datasets.SVHN, "split_list", files)
    data = load_named("svhn", tmp_path)
    for part, (images, labels) in ((data.train, written["train"]), (data.test, written["test"])):
        for position in range(14):
            np.testing.assert_array_equal(
                part.images[position].numpy(), images[..., position].transpose(2, 0, 1)
            )
        np.testing.assert_array_equal(part.labels.numpy(), labels)
        assert part.images.is_contiguous()
    assert data.train.classes == tuple("0123456789")


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist(tmp_path: Path, name: str, folder: str) -> None:
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    written = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = _random(15, 28, 28), _labels(10, 15).astype(np.uint8)
        header = struct.pack(">IIII", 0x803, *images.shape)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 15) + labels.tobytes())
        written[split] = images, labels
    data = load_named(name, tmp_path)
    for part, (images, labels) in ((data.train, written["train"]), (data.test, written["test"])):
        np.testing.assert_array_equal(part.images.numpy(), images[:, None])
        np.testing.assert_array_equal(part.labels.numpy(), labels)
    assert data.train.classes == NAMED[name].classes
    assert data.train.std == PRESETS[name].std

    (raw / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, 15, 28, 28) + bytes(100))
    with pytest.raises(DataError, match=rf"'{name}' \(test split\).*{folder}.*--download"):
        load_named(name, tmp_path)


def test_imagenet10_is_resized_and_cropped(tmp_path: Path) -> None:
    files = {}
    for label in range(10):
        files[f"imagenet-10/train/n{label:02}/a.PNG"] = encoded(np.full((230, 240, 3), 20 * label, np.uint8))
        files[f"imagenet-10/val/n{label:02}/b.jpg"] = encoded(np.full((100, 300, 3), 20 * label, np.uint8))
    data = load_named("imagenet-10", write_folder(tmp_path, files))
    assert data.train.classes == tuple(f"n{label:02}" for label in range(10))
    assert data.train.mean == PRESETS["imagenet-10"].mean
    for split in (data.train, data.test):
        assert split.images.shape == (10, 3, 224, 224)
        expected = 20 * split.labels.to(torch.uint8).view(10, 1, 1, 1)
        assert torch.equal(split.images, expected.expand_as(split.images))


def test_imagenet10_has_ten_classes(tmp_path: Path) -> None:
    files = {f"imagenet-10/{s}/n{c}/a.png": encoded(pixels(c)) for s in ("train", "val") for c in range(3)}
    with pytest.raises(DataError, match="has 3 classes, but 'imagenet-10' has 10"):
        load_named("imagenet-10", write_folder(tmp_path, files))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("svhn", ""),
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_a_missing_set_says_where_it_was_looked_for(tmp_path: Path, name: str, folder: str) -> None:
    with pytest.raises(DataError) as caught:
        load_named(name, tmp_path)
    assert f"cannot be loaded from {tmp_path / folder} " in str(caught.value)
    assert "--download" in str(caught.value)


def test_a_missing_imagenet10_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"imagenet-10/train and .*imagenet-10/val"):
        load_named("imagenet-10", tmp_path)


def test_an_unknown_name_lists_the_sets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=", ".join(NAMED)):
        load_named("cifar-10", tmp_path)
