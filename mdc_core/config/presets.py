"""Settings per data set as tables: the published ones (MDC, arXiv 2403.06075), and the facts of named sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mdc_core.config.settings import UNUSED, CondenseConfig, DataFacts, EvaluateConfig, MethodName
from mdc_core.errors import ConfigError


@dataclass(frozen=True)
class Exceptional:
    """A preset's settings for one factor and, optionally, one number of images per class."""

    factor: int
    ipc: int | None = None
    condense: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Mapping[str, Any] = field(default_factory=dict)

    def holds(self, ipc: int, factor: int) -> bool:
        """Whether it applies to sets of that size."""
        return factor == self.factor and self.ipc in (None, ipc)


@dataclass(frozen=True)
class Preset:
    """One column of the table; `condense` and `evaluate` hold only differences from the defaults."""

    method: MethodName = "idc"
    """Default method; for published settings it is `idc`."""
    condense: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    schedules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By method: differences from its schedule in `SCHEDULES`."""
    exceptions: tuple[Exceptional, ...] = ()
    """They override `condense` and `evaluate`."""
    epochs: tuple[tuple[float, int], ...] = ()
    """Pairs of an upper limit of tiles per class, ascending, and the evaluation epochs for sets up to that limit."""
    metric_alone: str = "mse"
    """Distance without a subset loss; with one, `condense` decides."""
    mean: tuple[float, ...] | None = None
    """Channel means for pixels in [0, 1]; None: measure them."""
    std: tuple[float, ...] | None = None
    """Channel standard deviations; None: measure them."""


SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "feature": {
        "subset_loss": "all",
        "mls_period": 3,
        "outer_loops": 30,
        "inner_iterations": 10,
        "lr_base": 0.01,
        "pool": 5,
        "pool_samples": 100_000,
    },
    "dream": {"init": "clusters", "batch_real": 128, "batch_network": 128},
}
"""Schedules of methods outside the published table; they override `Preset.condense`."""
_SMALL_COLOUR = {"augment": ("color", "crop", "scale", "rotate")}
_IMAGENET_NET = {"name": "resnet_ap", "width": 64}
_IMAGENET_EPOCHS = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500), (math.inf, 300))
_DIGITS_NET = {"depth": 2, "width": 32}
_PHOTOS_NET = {"depth": 4}

PRESETS: dict[str, Preset] = {
    "cifar10": Preset(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    "cifar100": Preset(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    "svhn": Preset(
        condense={"n_data": 500},
        evaluate=_SMALL_COLOUR,
        exceptions=(
            Exceptional(
                factor=1,
                ipc=1,
                evaluate={"augment": ("color", "crop", "scale", "rotate", "cutout"), "cutmix": 0.0},
            ),
        ),
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
    ),
    "mnist": Preset(
        condense={
            "lr_base": 1e-4,
            "lr_image_size": 28,
            "n_data": 500,
            "cutmix": 0.0,
            "augment": ("color", "crop"),
        },
        evaluate={**_SMALL_COLOUR, "cutmix": 0.0},
        exceptions=(
            Exceptional(
                factor=1,
                condense={"augment": ("color", "crop", "cutout"), "cutmix": 0.5},
                evaluate={"cutmix": 0.5},
            ),
        ),
        metric_alone="l1",
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "fashion-mnist": Preset(
        condense={"lr_base": 1e-4, "n_data": 500},
        metric_alone="l1",
        mean=(0.2861,),
        std=(0.3530,),
    ),
    "imagenet-10": Preset(
        condense={
            "network": _IMAGENET_NET,
            "factor": 3,
            "lr_base": 3e-3,
            "lr_image_size": 224,
            "n_data": 500,
            "outer_loops": 500,
            "mls_period": 50,
            "early": 10,
            "cutmix": 1.0,
        },
        evaluate={
            "network": _IMAGENET_NET,
            "augment": ("resized_crop", "flip", "jitter", "lighting"),
            "cutmix": 1.0,
        },
        epochs=_IMAGENET_EPOCHS,
        metric_alone="l1",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    # Not of the paper: 8x8 grey digits, small enough to be condensed on a laptop in a few minutes.
    "digits": Preset(
        method="feature",
        condense={
            "network": _DIGITS_NET,
            "factor": 1,
            "lr_base": 1e-2,
            "lr_image_size": 8,
            "outer_loops": 100,
            "inner_iterations": 10,
            "mls_period": 10,
            "batch_real": 32,
            "n_data": 256,
            "augment": ("color", "crop"),
            "cutmix": 0.0,
        },
        schedules={"feature": {"outer_loops": 15, "pool": 3, "pool_samples": 4000}},
        evaluate={
            "network": _DIGITS_NET,
            "augment": ("color", "crop", "scale", "rotate"),
            "cutmix": 0.0,
            "epochs": 100,
        },
    ),
    # Not of the paper: photographs of 33..128 pixels, with the ConvNet-D4 that is usual for Tiny ImageNet.
    "photos": Preset(method="feature", condense={"network": _PHOTOS_NET}, evaluate={"network": _PHOTOS_NET}),
}

DEFAULT_SIDE = 64
"""Largest default side of users' own images; the time of a run grows with its square."""

_TEN_DIGITS = tuple("0123456789")
NAMED: dict[str, DataFacts] = {
    "digits": DataFacts(
        name="digits",
        channels=1,
        image_size=8,
        classes=_TEN_DIGITS,
        smallest_class=139,
        images=1438,
        test_images=359,
    ),
    "cifar10": DataFacts(
        name="cifar10",
        channels=3,
        image_size=32,
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        smallest_class=5000,
        images=50_000,
        test_images=10_000,
    ),
    "cifar100": DataFacts(
        name="cifar100",
        channels=3,
        image_size=32,
        classes=tuple(f"class {i}" for i in range(100)),
        smallest_class=500,
        images=50_000,
        test_images=10_000,
    ),
    "svhn": DataFacts(
        name="svhn",
        channels=3,
        image_size=32,
        classes=_TEN_DIGITS,
        smallest_class=4659,
        images=73_257,
        test_images=26_032,
    ),
    "mnist": DataFacts(
        name="mnist",
        channels=1,
        image_size=28,
        classes=_TEN_DIGITS,
        smallest_class=5421,
        images=60_000,
        test_images=10_000,
    ),
    "fashion-mnist": DataFacts(
        name="fashion-mnist",
        channels=1,
        image_size=28,
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        smallest_class=6000,
        images=60_000,
        test_images=10_000,
    ),
    "imagenet-10": DataFacts(
        name="imagenet-10",
        channels=3,
        image_size=224,
        classes=tuple(f"class {i}" for i in range(10)),
        smallest_class=732,
    ),
}
"""Facts of the named sets before they are loaded. Loading replaces placeholder class names with the real ones."""


def preset_for(facts: DataFacts) -> str:
    """The preset for a data set: its own, or the closest by image size, channels and classes."""
    if facts.name in NAMED:
        return facts.name
    if facts.image_size > 128:
        return "imagenet-10"
    if facts.image_size > 32:
        return "photos"
    if facts.image_size <= 16:
        return "digits"
    if facts.channels == 1:
        return "fashion-mnist"
    return "cifar100" if len(facts.classes) > 20 else "cifar10"


def default_side(own_side: int, preset: str | None = None) -> int:
    """Default side for images of `own_side` pixels: their own, at most 64, or the size that `preset` is made for."""
    made_for = NAMED[preset].image_size if preset in NAMED else 0
    return min(own_side, max(DEFAULT_SIDE, made_for))


def condense_config(preset: str, overrides: Mapping[str, Any]) -> CondenseConfig:
    """The preset's configuration, overridden by the caller's values.

    The metric `accuracy` trains by the preset's evaluation.
    """
    chosen = PRESETS[check_preset(preset)]
    schedule = _schedule(chosen, overrides.get("method"))
    asked = CondenseConfig.model_validate(merge({**chosen.condense, **schedule}, overrides))
    own = dict(chosen.condense)
    if asked.subset_loss == "none" or asked.ipc == 1:
        own["metric"] = chosen.metric_alone
    for exception in chosen.exceptions:
        if exception.holds(asked.ipc, asked.factor):
            own |= exception.condense
    judged = evaluate_config(preset, {}, ipc=asked.ipc, factor=asked.factor)
    for name in ("epochs", "augment", "cutmix"):
        own[f"accuracy_{name}"] = getattr(judged, name)
    return CondenseConfig.model_validate(merge({**own, **schedule}, overrides))


def evaluate_config(preset: str, overrides: Mapping[str, Any], *, ipc: int, factor: int) -> EvaluateConfig:
    """The preset's evaluation for a set with `ipc` images of `factor`² tiles, overridden by the caller's values.

    Subsets are evaluated like the whole set, with as many epochs.
    """
    chosen = PRESETS[check_preset(preset)]
    own = dict(chosen.evaluate)
    if chosen.epochs:
        own["epochs"] = next(epochs for most, epochs in chosen.epochs if ipc * factor**2 <= most)
    for exception in chosen.exceptions:
        if exception.holds(ipc, factor):
            own |= exception.evaluate
    return EvaluateConfig.model_validate(merge(own, overrides))


def _schedule(preset: Preset, method: object) -> dict[str, Any]:
    """The method's schedule that overrides a preset, if there is one; settings that the method does not use are off."""
    if not isinstance(method, str) or method not in SCHEDULES:
        return {}
    return {**UNUSED[method], **SCHEDULES[method], **preset.schedules.get(method, {})}


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides` over `base`; a nested mapping (the network) is merged field by field."""
    return dict(base) | {
        key: {**base[key], **value}
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        else value
        for key, value in overrides.items()
    }


def check_preset(preset: str) -> str:
    """Return the name, or raise `ConfigError` if there is no such preset."""
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset!r}: choose one of {', '.join(PRESETS)}")
    return preset
