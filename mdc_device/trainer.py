"""Train on a fetched subset by its manifest's recipe. The only module here that needs the extra `core`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from safetensors.torch import save

from mdc_core.compute.streams import stream
from mdc_core.config.settings import EvaluateConfig, NetworkConfig, faults
from mdc_core.data.load import kind_of, load, survey
from mdc_core.data.normalisation import Normalisation
from mdc_core.data.real_set import RealSet
from mdc_core.delivery.budget import Budget, plan
from mdc_core.delivery.manifest import Manifest
from mdc_core.delivery.rankmajor import SetInfo
from mdc_core.errors import ConfigError
from mdc_core.networks import Network, build_network
from mdc_core.training.accuracy import accuracy
from mdc_core.training.batched import fit
from mdc_device import files
from mdc_device.client import Report
from mdc_device.decode import Images, Subset


@dataclass(frozen=True)
class Trained:
    """The result of a training."""

    path: str
    """The file of the weights: safetensors, float32, keyed by parameter name."""
    network: str
    """Name of the network, as in the manifest."""
    k: int
    """Images per class trained on."""
    images: int
    """Training images after decoding."""
    epochs: int
    """Passes over these images."""
    batch_size: int
    """Images per step."""
    seconds: float
    """Duration of the training alone."""
    accuracy: float | None
    """Share of test images classified correctly, in [0, 1]; None without test data."""

    def to_dict(self) -> dict[str, object]:
        """The fields as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """Decoded training data and recipe; the file is no longer needed."""

    info: SetInfo
    """Shape and normalisation of the set."""
    k: int
    """Images per class."""
    images: Images
    """`(k·C·f², ch, H, H)`, normalised."""
    labels: npt.NDArray[np.int64]
    """`(k·C·f²,)`"""
    recipe: EvaluateConfig
    """How to train."""


def prepare(whole: Subset, manifest: Manifest, budget: Budget) -> Task:
    """As much of a verified subset as fits the budget."""
    chosen = plan(manifest, replace(budget, have_k=whole.k), at_most=whole.k)
    recipe = recipe_of(manifest, replace(budget, epochs=chosen.epochs))
    subset = replace(whole, tiles=whole.tiles[: chosen.k], k=chosen.k)
    return Task(subset.info, subset.k, _normalised(subset), subset.labels(), recipe)


def train(
    task: Task,
    manifest: Manifest,
    *,
    to: Path,
    test: str | None,
    data_root: Path,
    device: str,
    seed: int,
    report: Report | None,
) -> Trained:
    """Train on the task's data by its recipe; see `mdc_device.api.train`."""
    where, recipe = _device(device), task.recipe
    tested = None if test is None else _test_images(test, data_root, manifest)
    net = _network(recipe.network, task.info, seed).to(where)
    images = torch.from_numpy(task.images).to(where)
    labels = torch.from_numpy(task.labels).to(where)
    begun = time.monotonic()
    pixels = Normalisation(task.info.mean, task.info.std)
    for epoch in fit(net, images, labels, pixels, recipe, stream(seed, "device")):
        if report is not None:
            report(epoch, recipe.epochs)
    seconds = time.monotonic() - begun
    about = {"set": manifest.name, "version": str(manifest.version), "k": str(task.k)}
    weights = {name: value.cpu().contiguous() for name, value in net.state_dict().items()}
    files.write(to, save(weights, {**about, "network": recipe.network.label()}))
    return Trained(
        path=str(to),
        network=recipe.network.label(),
        k=task.k,
        images=len(labels),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        seconds=seconds,
        accuracy=None if tested is None else accuracy(net, tested.to(where)),
    )


def recipe_of(manifest: Manifest, budget: Budget) -> EvaluateConfig:
    """The recipe behind the manifest's measured accuracy, with the budget's epochs and batch size.

    Raises `ConfigError` if it is invalid, or if the budget names another network.
    """
    fields = EvaluateConfig.model_fields.keys() - {"precision"}  # precision depends on the machine
    known = {name: value for name, value in manifest.recipe.items() if name in fields}
    network = known.get("network") or manifest.network
    changes = {"epochs": budget.epochs, "batch_size": budget.batch_size}
    settings: Mapping[str, Any] = {
        **known,
        "network": network,
        **{name: value for name, value in changes.items() if value is not None},
    }
    try:
        recipe = EvaluateConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"the recipe of {manifest.name!r} is invalid: {faults(error)}") from None
    if budget.network not in (None, recipe.network.label()):
        raise ConfigError(
            f"network is {budget.network!r}, but the recipe of {manifest.name!r} trains {recipe.network.label()!r}: "
            "leave out --network"
        )
    return recipe


def _network(config: NetworkConfig, info: SetInfo, seed: int) -> Network:
    return build_network(
        config,
        channels=info.channels,
        image_size=info.image_size,
        classes=len(info.classes),
        generator=stream(seed, "device-weights"),
    )


def _normalised(subset: Subset) -> Images:
    """Normalised images (k·C·f², ch, H, H), as the networks of this set expect them."""
    mean, std = (
        torch.tensor(values).view(-1, 1, 1).numpy() for values in (subset.info.mean, subset.info.std)
    )
    images = subset.images()
    images -= mean
    images /= std
    return images


def _test_images(source: str, root: Path, manifest: Manifest) -> RealSet:
    """The test images of a data set, normalised like the subset.

    Raises `ConfigError` if they belong to other data, or may be images that the set was made from: held out from data
    that have changed since.
    """
    info = manifest.info
    side = info.image_size if kind_of(source) in ("folder", "zip") else None
    data = load(source, root, image_size=side)
    test = data.test
    ours = (info.classes, info.channels, info.image_size)
    theirs = (test.classes, test.channels, test.image_size)
    if ours != theirs:
        raise ConfigError(
            f"{source!r} has (classes, channels, side) {theirs}, but the subset {ours}: give the data that it was "
            "made from"
        )
    is_changed = manifest.data_sha256 not in (None, data.train.fingerprint())
    if is_changed and survey(source, image_size=side).held_out:
        raise ConfigError(
            f"the training images of {source!r} have changed since {manifest.name!r} was made. Its test images are "
            "held out from the same images, so some may have been trained on: give the original data, or put test "
            "images into a folder test/"
        )
    return RealSet(test.images, test.labels, test.classes, info.mean, info.std)


def _device(name: str) -> torch.device:
    try:
        usable = torch.device(name)
        torch.zeros(1, device=usable)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or a backend that this torch lacks
        raise ConfigError(f"device {name!r} cannot be used ({error}): try --device cpu") from None
    return usable
