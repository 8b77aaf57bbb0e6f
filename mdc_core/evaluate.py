"""How good a set is at every size: networks trained on its first k images per class, tested on real test images."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from mdc_core.config import EvaluateConfig
from mdc_core.data import DataSet, RealSet
from mdc_core.networks import build_network
from mdc_core.streams import stream
from mdc_core.synthetic import SyntheticSet
from mdc_core.train import accuracy, fit

Source = Literal["condensed", "random"]


@dataclass(frozen=True)
class Trial:
    """One training."""

    k: int
    source: Source
    """Trained on the condensed set, or on k random real images per class."""
    repeat: int
    """0-based."""
    accuracy: float
    """Test accuracy in [0, 1] after the last epoch."""
    best: float
    """The best of four tests, after 25, 50, 75 and 100 % of the epochs: for comparison with tables that report it."""


@dataclass(frozen=True)
class Row:
    """All trainings of one k and source."""

    k: int
    source: Source
    mean: float
    """Mean test accuracy in [0, 1]."""
    std: float
    """Sample standard deviation over the repeats; 0 for a single one."""
    best: float
    """Mean of the best of four tests."""
    repeats: int


def evaluate(
    synthetic: SyntheticSet,
    data: DataSet,
    config: EvaluateConfig,
    device: torch.device | str = "cpu",
    done: Collection[Trial] = (),
) -> Iterator[Trial]:
    """Train and test on every k, as often as asked for; yields each training when it is done.

    `synthetic` is judged as it is given: pass `delivered()` to judge what devices receive. Both sources use the
    same initial weights at the same k and repeat. Trainings in `done`, of an evaluation that was cut off, are
    passed over.

    Raises:
        ConfigError: a k is not in 1..N.
    """
    train, test = data.train.to(torch.device(device)), data.test.to(torch.device(device))
    passed = {(trial.k, trial.source, trial.repeat) for trial in done}
    sources: tuple[Source, ...] = ("condensed", "random") if config.random_baseline else ("condensed",)
    for k, repeat, source in product(config.sizes_of(len(synthetic.tiles)), range(config.repeats), sources):
        if (k, source, repeat) in passed:
            continue
        if source == "condensed":
            subset = synthetic.subset(k)
            images, labels = subset.images().to(device), subset.labels().to(device)
        else:
            images, labels = random_images(train, k, config.seed, repeat)
        yield _trial(source, k, repeat, images, labels, test, config)


def trials_planned(config: EvaluateConfig, ipc: int) -> int:
    """How many trials `evaluate` yields."""
    return len(config.sizes_of(ipc)) * config.repeats * (2 if config.random_baseline else 1)


def random_images(real: RealSet, k: int, seed: int, repeat: int) -> tuple[Tensor, Tensor]:
    """k random real images per class (fewer where a class has fewer), (M, ch, H, H) in [0, 1], and labels (M,)."""
    chosen = []
    for label, positions in enumerate(real.class_index()):
        order = torch.randperm(len(positions), generator=stream(seed, "random", repeat, label))
        chosen.append(positions[order[:k].to(positions.device)])
    all_chosen = torch.cat(chosen)
    return real.floats(all_chosen), real.labels[all_chosen]


def summarise(trials: Iterable[Trial]) -> list[Row]:
    """Mean and spread per k and source, in order of k, condensed before random."""
    groups: dict[tuple[int, Source], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.k, trial.source), []).append(trial)
    return [
        Row(
            k=k,
            source=source,
            mean=statistics.fmean(t.accuracy for t in group),
            std=statistics.stdev(t.accuracy for t in group) if len(group) > 1 else 0.0,
            best=statistics.fmean(t.best for t in group),
            repeats=len(group),
        )
        for (k, source), group in sorted(groups.items())
    ]


def _trial(
    source: Source,
    k: int,
    repeat: int,
    images: Tensor,
    labels: Tensor,
    test: RealSet,
    config: EvaluateConfig,
) -> Trial:
    net = build_network(
        config.network,
        channels=test.channels,
        image_size=test.image_size,
        classes=test.num_classes,
        generator=stream(config.seed, "evaluate-weights", k, repeat),
    ).to(images.device)
    quarters = {-(-config.epochs * i // 4) for i in (1, 2, 3, 4)}
    generator = stream(config.seed, f"evaluate-{source}", k, repeat)
    scores = [
        accuracy(net, test)
        for epoch in fit(net, test.normalise(images), labels, config, generator)
        if epoch in quarters
    ]
    return Trial(k, source, repeat, scores[-1], max(scores))
