"""Training on a fetched file by the recipe of its manifest; and what is said where torch is missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mdc_core.delivery import rankmajor
from mdc_core.delivery.budget import convnet_cost
from mdc_core.delivery.manifest import build_manifest
from mdc_device import api, files
from mdc_device.cli import main

torch = pytest.importorskip("torch")
data = pytest.importorskip("mdc_core.data.load")
safetensors = pytest.importorskip("safetensors.torch")

RECIPE = {
    "epochs": 30,
    "batch_size": 16,
    "lr": 0.05,
    "cutmix": 0.0,
    "augment": ["crop"],
    "network": {"name": "convnet", "depth": 2, "width": 8},
    "a field of a newer release": 1,
}
NAME = "convnet-d2-w8"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """So small a network is slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Subset 4 of real digits, five per class, with a manifest that was never signed."""
    train = data.load_named("digits", tmp_path).train
    info = rankmajor.SetInfo(5, 1, train.classes, train.mean, train.std, 8, 1)
    images = np.stack([train.images[train.labels == label][:5].numpy() for label in range(10)], axis=1)
    packed = rankmajor.pack(images[:, :, None], info)  # (N, C, 1, ch, H, H)
    manifest = build_manifest(
        name="digits",
        version=3,
        created="2020-01-01T00:00:00Z",
        expires=None,
        info=info,
        digests=rankmajor.digests(packed, info),
        object_url="/x",
        network={"name": "convnet", "depth": 2, "width": 8},
        recipe=RECIPE,
        accuracy=[],
        cost={NAME: convnet_cost(2, 8, 1, 8, 10)},
    )
    path = tmp_path / "digits.mdc"
    path.write_bytes(rankmajor.subset(packed, info, 4))
    files.manifest_of(path).write_text(json.dumps(manifest))
    return path


def trained(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any], str]:
    code = main(["train", *map(str, words), "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else {}, said.err


def test_it_learns_by_the_recipe(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, err = trained(capsys, file, "--test", "digits")
    assert (code, err) == (0, "")
    assert found["accuracy"] > 0.3, found  # chance is 0.1
    assert (found["network"], found["k"], found["images"]) == (NAME, 4, 40)
    assert (found["epochs"], found["batch_size"]) == (30, 16)
    weights = safetensors.load_file(found["path"])
    assert Path(found["path"]).name == "digits.mdc.weights.safetensors"
    with safetensors.safe_open(found["path"], "pt") as opened:
        assert opened.metadata() == {"set": "digits", "version": "3", "k": "4", "network": NAME}
    assert sum(value.numel() for value in weights.values()) == convnet_cost(2, 8, 1, 8, 10).parameters


def test_the_same_seed_gives_the_same_weights(file: Path, tmp_path: Path) -> None:
    outcomes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        api.train(file, to=tmp_path / name, seed=seed, budget=api.Budget(epochs=2))
        weights = safetensors.load_file(tmp_path / name)
        outcomes.append(torch.cat([weights[key].flatten() for key in sorted(weights)]))
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])


def test_two_commands_at_once(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is free again once it is decoded; the weights belong to one training."""
    weights = file.with_name("digits.mdc.weights.safetensors")
    with files.locked(file, shared=True):
        assert trained(capsys, file, "--epochs", 1)[0] == 0
    before = weights.read_bytes()
    for busy in (file, weights):
        with files.locked(busy):
            code, _, err = trained(capsys, file, "--epochs", 2)
        assert code == 7
        assert f"another process is reading or changing {busy}: nothing was done" in err
    assert weights.read_bytes() == before

    def shrink(_done: int, _total: int) -> None:
        if api.status(file).k == 4:
            api.shrink(file, 1)

    assert api.train(file, budget=api.Budget(epochs=2), report=shrink).k == 4


def test_weights_do_not_overwrite_the_subset(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file.read_bytes()
    for to in (file, files.manifest_of(file), file.parent / "." / file.name):
        code, _, err = trained(capsys, file, "--to", to)
        assert code == 2
        assert "would overwrite" in err
    assert file.read_bytes() == before


def test_the_budget_counts(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, _ = trained(capsys, file, "--epochs", 1, "--batch-size", 8)
    assert (code, found["epochs"], found["batch_size"], found["accuracy"]) == (0, 1, 8, None)
    cost = convnet_cost(2, 8, 1, 8, 10)
    work = 20 * cost.flops_per_image + 140 * (20 * cost.activation_bytes + 3 * 4 * cost.parameters)
    seconds = 2 * work / 1e6  # two epochs of twenty images in batches of eight at 1 MFLOP/s
    code, found, _ = trained(
        capsys, file, "--epochs", 2, "--batch-size", 8, "--seconds", seconds, "--flops", "1M"
    )
    assert (code, found["k"], found["images"]) == (0, 2, 20)
    code, _, err = trained(capsys, file, "--memory", 1)
    assert code == 6
    assert "memory_bytes is 1, but it needs" in err


def test_few_seconds_get_the_epochs_that_are_best_for_them(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads(files.manifest_of(file).read_text())
    row = {"network": NAME, "k": 1, "mdc_std": 0.0, "random_mean": None, "random_std": None, "repeats": 1}
    manifest["accuracy"] = [
        {**row, "epochs": epochs, "mdc_mean": mean} for epochs, mean in ((30, 0.9), (3, 0.5))
    ]
    files.manifest_of(file).write_text(json.dumps(manifest))
    cost = convnet_cost(2, 8, 1, 8, 10)
    work = 40 * cost.flops_per_image + 140 * (40 * cost.activation_bytes + 3 * 4 * cost.parameters)
    for epochs in (30, 3):
        code, found, _ = trained(capsys, file, "--seconds", epochs * work / 1e9, "--flops", "1G")
        assert (code, found["k"], found["epochs"]) == (0, 4, epochs)


def test_images_held_out_from_data_that_have_changed_are_refused(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = data.load_named("digits", tmp_path).train
    folder = tmp_path / "pictures"
    for label, name in enumerate(digits.classes):
        (folder / "train" / name).mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.labels == label][:10]):
            Image.fromarray(image[0].numpy()).save(folder / "train" / name / f"{number}.png")
    manifest = json.loads(files.manifest_of(file).read_text())

    def tested(data_sha256: str, source: object) -> tuple[int, str]:
        files.manifest_of(file).write_text(json.dumps(manifest | {"data_sha256": data_sha256}))
        code, _, err = trained(capsys, file, "--epochs", 1, "--test", source)
        return code, err

    now = data.load(str(folder), tmp_path, image_size=8).train.fingerprint()
    assert tested(now, folder) == (0, "")
    code, err = tested("0" * 64, folder)
    assert code == 2
    assert "some may have been trained on" in err
    assert tested("0" * 64, "digits") == (0, "")  # whose test images are never training images


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--network", "resnet10-ap-w64"), "network is 'resnet10-ap-w64'"),
        (("--test", "no such data"), "neither a file, a folder nor a named set"),
        (("--device", "abacus"), "device 'abacus' cannot be used"),
        (("--epochs", "0"), "epochs is 0"),
    ],
)
def test_wrong_use(
    file: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    code, _, err = trained(capsys, file, *words)
    assert code == 2
    assert message in err
    assert not (file.parent / "digits.mdc.weights.safetensors").exists()


def test_test_images_of_other_classes_are_refused(file: Path, tmp_path: Path) -> None:
    pixels, labels = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "other.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    with pytest.raises(Exception, match=r"but the subset .*give the data that it was made from"):
        api.train(file, test=str(tmp_path / "other.npz"))


def test_a_recipe_that_cannot_be_followed(file: Path) -> None:
    manifest = json.loads(files.manifest_of(file).read_bytes())
    manifest["recipe"]["lr"] = -1
    files.manifest_of(file).write_text(json.dumps(manifest))
    with pytest.raises(Exception, match="recipe of 'digits' is invalid"):
        api.train(file)


def test_a_damaged_file_is_not_trained_on(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert trained(capsys, file)[0] == 5


def test_without_torch_it_says_what_to_install(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "mdc_device.trainer", raising=False)
    monkeypatch.delattr(sys.modules["mdc_device"], "trainer", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = trained(capsys, file)
    assert code == 2
    assert "pip install 'multisize-condensation[core]'" in err
