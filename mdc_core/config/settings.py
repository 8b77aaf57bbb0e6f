"""The settings of a condensation and an evaluation: frozen, validated at construction. No torch.

Notation: N ipc, C classes, f factor, T outer loops, E inner iterations, H image side, s = ceil(H / f) tile side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mdc_core.errors import ConfigError
from mdc_core.names import visible

AugmentOp = Literal[
    "flip", "color", "crop", "scale", "rotate", "cutout", "resized_crop", "jitter", "lighting"
]
Probability = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["float32", "tf32", "bf16"]
MethodName = Literal["idc", "dream", "feature"]
Source = Literal["condensed", "random", "shrunk"]
"""What an evaluation trains on: the condensed set, whole real images, or shrunk real images of the same bytes."""
_ONLY_FEATURE: Mapping[str, Any] = {"at_tile_side": False, "calibration": 0.0, "calibration_decay": 0.0}
_ONLY_DREAM: Mapping[str, Any] = {"cluster_period": 10}
UNUSED: Mapping[str, Mapping[str, Any]] = {
    "idc": {**_ONLY_FEATURE, **_ONLY_DREAM},
    "dream": _ONLY_FEATURE,
    "feature": {
        "metric": "mse",
        "lr_image_size": 32,
        "momentum": 0.5,
        "batch_syn_max": None,
        "early": 0,
        "pool_noise": 0.0,
        "n_data": 0,
        **_ONLY_DREAM,
    },
}
"""By method: settings that it does not use, and the only value besides the default that they may have."""
MIN_SIDE, MAX_SIDE = 4, 1024
"""Smallest and largest image side."""
MOST_IPC = 1000
MOST_LOOPS = 1_000_000_000
"""Upper limit of loops, iterations and epochs: no run reaches it, and arithmetic stays far from overflow."""
MOST_SAMPLES = 1_000_000_000
"""Upper limit of images, drawn with repetition."""
MOST_BATCH = 1_000_000
MOST_FACTOR = 1e30
"""Upper limit of step sizes and weights."""
RESNET_LEAST_SIDE = 16
"""Smallest side for ResNet10-AP: below it, the last stage sees single pixels, whose norm is always zero."""


class Frozen(BaseModel):
    """An immutable configuration; unknown fields are errors that name them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def stored(cls, values: Mapping[str, Any]) -> Self:
        """Load a stored configuration. `ConfigError` if only an earlier release accepted it."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            wrong = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
            raise ConfigError(
                f"this release no longer accepts stored settings of an earlier one ({wrong}): submit the job again"
            ) from error


def _visible(name: Any) -> Any:
    return visible(name) if isinstance(name, str) else name


class DataFacts(Frozen):
    """What is known about a data set before its pixels are read; enough to refuse an impossible job."""

    name: str
    """Name of the data set."""
    channels: int = Field(ge=1, le=4)
    """Colour channels, 1 or 3."""
    image_size: int = Field(ge=MIN_SIDE, le=MAX_SIDE)
    """H: side of the square images in pixels."""
    classes: tuple[Annotated[str, BeforeValidator(_visible)], ...] = Field(min_length=2)
    """Class names; a name's position is its label."""
    smallest_class: int = Field(ge=1, le=MOST_SAMPLES)
    """Real training images in the smallest class."""
    images: int | None = Field(default=None, ge=1, le=MOST_SAMPLES)
    """Training images of all classes; null if not counted."""
    test_images: int | None = Field(default=None, ge=1, le=MOST_SAMPLES)
    """Test images of all classes; null if not counted."""
    held_out: bool = False
    """Whether the test images were held out from the training images, because there was no test split."""
    ignored: int = Field(default=0, ge=0, le=MOST_SAMPLES)
    """Files and folders ignored: hidden ones, and those beside train and test."""
    own_side: int | None = Field(default=None, ge=MIN_SIDE, le=MOST_SAMPLES)
    """Median of the images' short sides before resizing; null if they are not resized."""


class NetworkConfig(Frozen):
    """The network that is matched, or trained in an evaluation."""

    name: Literal["convnet", "resnet_ap"] = "convnet"
    """`convnet`: ConvNet-D(depth). `resnet_ap`: ResNet10-AP, with average pooling in four stages of one block."""
    depth: int = Field(default=3, ge=1, le=8)
    """Blocks of the ConvNet. Each halves the image side. ResNet10-AP ignores it."""
    width: int = Field(default=128, ge=4, le=2048)
    """Channels of every ConvNet block, or of ResNet10-AP's first stage."""

    def label(self) -> str:
        """The network's name in tables and manifests: `convnet-d3-w128`, `resnet10-ap-w64`."""
        return (
            f"convnet-d{self.depth}-w{self.width}" if self.name == "convnet" else f"resnet10-ap-w{self.width}"
        )


def faults(error: ValidationError, name_of: Callable[[str], str] = str) -> str:
    """All that pydantic found, on one line: `field: message; …`. `name_of` makes a field's name of its dotted path."""
    return "; ".join(
        f"{name_of(path)}: {fault(item)}" if (path := ".".join(map(str, item["loc"]))) else fault(item)
        for item in error.errors()
    )


def fault(item: Mapping[str, Any], value: str = "") -> str:
    """One of pydantic's `errors()` as a message, followed by `value`; suggests a name for an unknown setting."""
    text = str(item["msg"]).removeprefix("Value error, ")
    nearest = _nearest_setting(str(item["loc"][-1])) if item["type"] == "extra_forbidden" else None
    return f"{text}{value}" + (f": did you mean {nearest}?" if nearest else "")


def _nearest_setting(name: str) -> str | None:
    """The setting that a mistyped name probably stands for."""
    known = {*CondenseConfig.model_fields, *EvaluateConfig.model_fields, *NetworkConfig.model_fields}
    return next(iter(get_close_matches(name[:100], sorted(known), 1)), None)


class CondenseConfig(Frozen):
    """The settings of a condensation; the defaults are those for CIFAR-10 (MDC, arXiv 2403.06075, section 4)."""

    method: MethodName = "idc"
    """`idc` matches gradients (IDC, arXiv 2205.14959). `dream` matches those of representative real images (DREAM,
    arXiv 2302.14416). `feature` matches the mean features of every prefix.
    """
    ipc: int = Field(default=10, ge=1, le=MOST_IPC)
    """N: synthetic images per class of the whole set."""
    factor: int = Field(default=2, ge=1, le=8)
    """f: every image is a mosaic of f × f tiles (multi-formation)."""
    init: Literal["real", "clusters", "noise"] = "real"
    """How tiles start. `real`: as random real images, shrunk. `clusters`: as those closest to the centroids of each
    class, clustered by features of an untrained network (DREAM). `noise`: as noise around mid grey.
    """
    start_index: int = Field(default=0, ge=0, le=MOST_LOOPS)
    """Skip the first start_index·N·f² real images of each class (Baseline B: N runs of ipc 1)."""
    network: NetworkConfig = NetworkConfig()
    """The network that is matched; `idc` uses a fresh one in every outer loop."""

    subset_loss: Literal["mls", "none", "all"] = "mls"
    """Subsets that are matched besides the whole set. `mls`: the most learnable one. `all`: every size. `none`:
    none (Baseline C).
    """
    subset_weights: (
        Annotated[tuple[Annotated[float, Field(ge=0, le=MOST_FACTOR)], ...], Field(fail_fast=True)] | None
    ) = Field(default=None, max_length=MOST_IPC)
    """Only with subset_loss `all`: weights of sizes 1..N-1. `null`: 1 / size with `feature`, else 1."""
    subset_metric: Literal["feature", "gradient", "accuracy"] = "feature"
    """Distance of a subset from the real data when the MLS is selected (Table 6). `accuracy` is slow."""
    accuracy_epochs: int = Field(default=1000, ge=1, le=MOST_LOOPS)
    """Only with subset_metric `accuracy`: epochs of each training on a subset."""
    accuracy_augment: tuple[AugmentOp, ...] = ("color", "crop", "flip", "scale", "rotate")
    """Only with subset_metric `accuracy`: augmentation of that training, drawn per image."""
    accuracy_cutmix: Probability = 0.5
    """Only with subset_metric `accuracy`: probability of CutMix in that training."""
    mls_period: int = Field(default=100, ge=1, le=MOST_LOOPS)
    """Δt: outer loops between two selections of the MLS."""
    freeze: Literal["predecessor", "cumulative", "none"] = "predecessor"
    """Prefix that is frozen when the MLS grows (Eq. 10). `cumulative` is the rule of the released code."""
    class_wise: bool = False
    """Select and freeze the MLS separately for every class."""

    metric: Literal["mse", "l1", "cos"] = "mse"
    """Not with `feature`: distance between gradients, summed over all matched parameters."""
    calibration: float = Field(default=0.1, ge=0, le=MOST_FACTOR)
    """Only with `feature`: weight of the images' cross-entropy under the trained network. 0 turns it off."""
    calibration_decay: float = Field(default=2.0, ge=0, le=100)
    """Only with `feature`: calibration falls with the rank as rank^-decay."""
    at_tile_side: bool = False
    """Only with `feature`: networks see tiles unenlarged and real images shrunk to the tile side, f² times
    cheaper.
    """
    outer_loops: int = Field(default=2000, ge=1, le=MOST_LOOPS)
    """T: networks to match. With `feature`, parts of the run; a checkpoint may follow each."""
    inner_iterations: int = Field(default=100, ge=1, le=MOST_LOOPS)
    """E: tile updates per outer loop."""
    lr_base: float = Field(default=5e-3, gt=0, le=MOST_FACTOR)
    """Step size of the tiles. `feature` uses it as it is, for pixels in [0, 1]. The others scale it:
    lr_base · N/10 · (H / lr_image_size)².
    """
    lr_image_size: int = Field(default=32, ge=MIN_SIDE, le=MAX_SIDE)
    """Not with `feature`: the image side that `lr_base` was tuned for."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Not with `feature`: momentum of the tiles."""
    batch_real: int = Field(default=64, ge=1, le=MOST_BATCH)
    """Real images per class and iteration."""
    cluster_period: int = Field(default=10, ge=1, le=MOST_LOOPS)
    """Only with `dream`: iterations after which each class is clustered anew, into batch_real clusters."""
    batch_syn_max: int | None = Field(default=None, ge=1, le=MOST_BATCH)
    """Not with `feature`: most synthetic tiles per class and iteration. Subset losses need all of them. `null`: no
    limit.
    """
    augment: tuple[AugmentOp, ...] = ("color", "crop", "cutout")
    """Siamese augmentation of the matched batches."""

    early: int = Field(default=0, ge=0, le=MOST_LOOPS)
    """Not with `feature`: epochs on real data before a fresh network is matched."""
    pool: int = Field(default=0, ge=0, le=1000)
    """Networks trained in advance. `feature` uses one per update, the others one per outer loop (Acc-DD, arXiv
    2212.06152). 0: fresh networks.
    """
    pool_samples: int = Field(default=100_000, ge=1, le=MOST_SAMPLES)
    """Only with a pool: real samples that each network is trained on, once."""
    pool_noise: float = Field(default=1.0, ge=0, le=MOST_FACTOR)
    """Only with a pool, not with `feature`: random perturbation of each network, relative to each filter's norm."""
    n_data: int = Field(default=2000, ge=0, le=MOST_SAMPLES)
    """Not with `feature`: real samples that the network is trained on after every tile update."""
    batch_network: int = Field(default=64, ge=1, le=MOST_BATCH)
    """Batch size of that training."""
    lr_network: float = Field(default=0.01, gt=0, le=MOST_FACTOR)
    """Step size of that training (SGD, momentum 0.9, weight decay 5e-4)."""
    cutmix: Probability = 0.5
    """Probability of CutMix in that training."""
    precision: Precision = "float32"
    """On a GPU, `tf32` rounds the factors of products to 10 bits; `bf16` also trains the network in bfloat16."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Random seed; it determines everything random."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        tiles = self.ipc * self.factor**2
        has_subsets = self.subset_loss != "none" and self.ipc > 1
        if has_subsets and self.batch_syn_max is not None and self.batch_syn_max < tiles:
            raise ConfigError(
                f"batch_syn_max is {self.batch_syn_max}, but a class has ipc·factor² = {tiles} tiles and the "
                f"subset loss needs all of them: leave batch_syn_max out or raise it to {tiles}"
            )
        check_augment(self.augment)
        check_augment(self.accuracy_augment)
        self._check_method()
        if self.init == "clusters" and self.start_index:
            raise ConfigError(
                "start_index skips random real images, but init 'clusters' picks representatives: set init to 'real'"
            )
        if self.pool and self.early:
            raise ConfigError(
                "early trains fresh networks, but pool takes networks that are trained: set one to 0"
            )
        if self.subset_weights is not None:
            if self.subset_loss != "all":
                raise ConfigError("subset_weights belongs to subset_loss 'all': set that, or leave it out")
            if len(self.subset_weights) != self.ipc - 1:
                raise ConfigError(
                    f"subset_weights has {len(self.subset_weights)} values, but ipc {self.ipc} has "
                    f"{self.ipc - 1} subset sizes: 1..{self.ipc - 1}"
                )
        return self

    def _check_method(self) -> None:
        """Raise `ConfigError` for settings that the method ignores, and for missing ones that it requires."""
        for name, unused in UNUSED[self.method].items():
            value = getattr(self, name)
            if value not in (unused, type(self).model_fields[name].default):
                raise ConfigError(
                    f"{name} is {value!r}, but method {self.method!r} makes no use of it: leave it out"
                )
        if self.method != "feature":
            return
        if not self.pool:
            raise ConfigError("method 'feature' takes its networks from a pool: set pool to 1 or more")
        if self.subset_metric == "gradient":
            raise ConfigError(
                "method 'feature' has no gradients to compare: set subset_metric to 'feature' or 'accuracy'"
            )

    @property
    def uses_mls(self) -> bool:
        """Whether an MLS is selected; with one image per class there is no subset."""
        return self.subset_loss == "mls" and self.ipc > 1

    def tile_batch(self) -> int:
        """Synthetic tiles per class in one iteration: all, or at most `batch_syn_max`."""
        return min(self.ipc * self.factor**2, self.batch_syn_max or 2**62)

    def tile_side(self, image_size: int) -> int:
        """s = ceil(H / f)."""
        return -(-image_size // self.factor)

    def matched(self) -> Self:
        """This condensation as its networks see it: at the tile side a ConvNet has log2(f) blocks fewer."""
        if not self.at_tile_side or self.network.name != "convnet":
            return self
        depth = max(1, self.network.depth - round(math.log2(self.factor)))
        return self.model_copy(update={"network": self.network.model_copy(update={"depth": depth})})

    def matched_side(self, image_size: int) -> int:
        """Side at which networks see tiles and real images: s or H."""
        return self.tile_side(image_size) if self.at_tile_side else image_size

    def tile_lr(self, image_size: int) -> float:
        """Step size of the tiles: lr_base · (N / 10) · (H / H0)²."""
        return self.lr_base * (self.ipc / 10) * (image_size / self.lr_image_size) ** 2

    def network_augment(self) -> tuple[AugmentOp, ...]:
        """Augmentation of the network's training: the siamese list without cutout, which CutMix replaces."""
        return tuple(op for op in self.augment if op != "cutout")

    def check_data(self, facts: DataFacts) -> None:
        """Raise `ConfigError` if this condensation is impossible with such data."""
        if self.factor > facts.image_size:
            raise ConfigError(
                f"factor is {self.factor}, but {facts.name!r} has images of {facts.image_size} pixels: "
                f"give at most {facts.image_size}"
            )
        check_network(self.network, facts.image_size)
        if self.at_tile_side:
            check_network(self.matched().network, self.matched_side(facts.image_size))
        needed = (self.start_index + 1) * self.ipc * self.factor**2
        if "cluster_period" not in UNUSED[self.method] and self.batch_real > facts.smallest_class:
            raise ConfigError(
                f"method {self.method!r} clusters each class into batch_real = {self.batch_real} parts, but "
                f"{facts.name!r} has a class with {facts.smallest_class} images: set batch_real to at most "
                f"{facts.smallest_class}"
            )
        if self.init != "noise" and needed > facts.smallest_class:
            raise ConfigError(
                f"initialising from real images needs (start_index + 1)·ipc·factor² = {needed} of each class, "
                f"but {facts.name!r} has a class with {facts.smallest_class}: lower ipc or factor, or use "
                f"init 'noise'"
            )


class EvaluateConfig(Frozen):
    """The settings of an evaluation: networks are trained on the first k images per class and tested on real images."""

    sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=MOST_IPC)], ...], Field(fail_fast=True)] | None = (
        Field(default=None, max_length=MOST_IPC)
    )
    """The k to evaluate. `null`: every k from 1 to N."""
    repeats: int = Field(default=3, ge=1, le=1000)
    """Networks per k; the standard deviation is over them."""
    epochs: int = Field(default=1000, ge=1, le=MOST_LOOPS)
    """Epochs of each training."""
    epoch_shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(default=(), max_length=20)
    """Fractions of `epochs`. The condensed set is also trained on for each, with a whole schedule, for devices
    with little time. Jobs on your own data and on `digits` use `[0.3,0.1]`.
    """
    network: NetworkConfig = NetworkConfig()
    """The network that is trained."""
    batch_size: int = Field(default=64, ge=1, le=MOST_BATCH)
    """Images per step."""
    lr: float = Field(default=0.01, gt=0, le=MOST_FACTOR)
    """Initial step size (SGD, momentum 0.9, weight decay 5e-4); multiplied by 0.2 after 2/3 and 5/6 of the epochs."""
    augment: tuple[AugmentOp, ...] = ("color", "crop", "flip", "scale", "rotate")
    """Augmentation, drawn per image."""
    cutmix: Probability = 0.5
    """Probability of CutMix."""
    random_baseline: bool = True
    """Also train on k random real images per class, by the same recipe. `false` turns off both baselines."""
    shrunk_baseline: bool = True
    """Also train on k·f² real images shrunk to tiles, which have the bytes of subset k. With factor 1 this equals
    random.
    """
    precision: Precision = "float32"
    """On a GPU, `tf32` rounds the factors of products to 10 bits; `bf16` also trains in bfloat16."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Random seed; it determines everything random."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_augment(self.augment)
        return self

    def sizes_of(self, ipc: int) -> tuple[int, ...]:
        """The k to evaluate for a set with `ipc` images per class. `ConfigError` if one is out of range."""
        for k in self.sizes or ():
            check_k(k, ipc)
        if len(set(self.sizes or ())) < len(self.sizes or ()):
            raise ConfigError(
                f"sizes is {self.sizes}: name every k once, and ask for more networks by repeats"
            )
        return self.sizes or tuple(range(1, ipc + 1))

    def sources_of(self, factor: int) -> tuple[Source, ...]:
        """What to train on at every k, for a set with `factor`² tiles per image."""
        if not self.random_baseline:
            return ("condensed",)
        if not self.shrunk_baseline or factor == 1:
            return ("condensed", "random")
        return ("condensed", "random", "shrunk")

    def epochs_of(self, source: Source) -> tuple[int, ...]:
        """Epochs of the trainings on a source at every k, longest first."""
        shares = self.epoch_shares if source == "condensed" else ()
        lengths = {self.epochs, *(max(1, round(share * self.epochs)) for share in shares)}
        return tuple(sorted(lengths, reverse=True))

    def trainings(self, ipc: int, factor: int) -> int:
        """Number of trainings in an evaluation of such a set."""
        at_every_k = sum(len(self.epochs_of(source)) for source in self.sources_of(factor))
        return len(self.sizes_of(ipc)) * self.repeats * at_every_k

    @classmethod
    def stored(cls, values: Mapping[str, Any]) -> Self:
        """Load a stored configuration; earlier releases had no shrunk baseline."""
        return super().stored({"shrunk_baseline": False, **values})

    def milestones(self) -> tuple[int, int]:
        """Epochs after which the step size decreases: 666 and 833 of 1000."""
        return max(1, self.epochs * 2 // 3), max(1, self.epochs * 5 // 6)


def check_k(k: int, ipc: int) -> int:
    """Return `k`, or raise `ConfigError` if the set has no subset of that size."""
    if not 1 <= k <= ipc:
        raise ConfigError(f"k is {k}, but the set has {ipc} images per class: give a whole number 1..{ipc}")
    return k


def check_augment(ops: tuple[AugmentOp, ...]) -> None:
    """Raise `ConfigError` if part of the list would be ignored."""
    if len(set(ops)) < len(ops):
        raise ConfigError(f"augment is {list(ops)}: name every operation once")
    for one, others in (("jitter", {"color"}), ("resized_crop", {"crop", "scale", "rotate"})):
        if one in ops and others & set(ops):
            raise ConfigError(
                f"augment has {one!r} beside {sorted(others & set(ops))}: they exclude each other"
            )


def check_network(network: NetworkConfig, image_size: int) -> None:
    """Raise `ConfigError` if the image is too small for the network's halvings."""
    if network.name == "resnet_ap" and image_size < RESNET_LEAST_SIDE:
        raise ConfigError(
            f"resnet_ap needs images of at least {RESNET_LEAST_SIDE} pixels, these have {image_size}: use convnet"
        )
    if network.name == "convnet" and (image_size >> network.depth) < 1:
        raise ConfigError(
            f"network.depth is {network.depth}, but images of {image_size} pixels can be halved "
            f"{image_size.bit_length() - 1} times: lower the depth"
        )


def check_fixed_size(source: str, actual: int, wanted: int | None) -> None:
    """Raise `ConfigError` if another side is requested for data that are not resized."""
    if wanted not in (None, actual):
        raise ConfigError(
            f"image_size is {wanted}, but the images of {source!r} are {actual} pixels and are not resized: "
            f"leave it out (it applies to folders and zips)"
        )
