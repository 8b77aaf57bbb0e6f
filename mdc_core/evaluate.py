"""How good a set is at every size: networks trained on its first k images per class, tested on real test images."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, product
from typing import Literal

import torch
from torch import Tensor

from mdc_core.at_once import how_many
from mdc_core.config import EvaluateConfig, Precision
from mdc_core.data import DataSet, RealSet
from mdc_core.estimate import lane_bytes
from mdc_core.lanes import Lane, train_lanes
from mdc_core.networks import build_network
from mdc_core.precision import products
from mdc_core.recorder import Recorder
from mdc_core.streams import stream
from mdc_core.synthetic import SyntheticSet
from mdc_core.train import accuracy

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
    *,
    at_once: int | None = None,
) -> Iterator[Trial]:
    """Train and test on every k, as often as asked for; yields each training when it is done, small ones first.

    `synthetic` is judged as it is given: pass `delivered()` to judge what devices receive. Both sources use the same
    initial weights at the same k and repeat. Trainings in `done`, of an evaluation that was cut off, are passed over.
    Those that have as many images in a step are one batch of models, up to `at_once`; left out: as far as it pays.

    Raises:
        ConfigError: a k is not in 1..N.
    """
    train, test = data.train.to(torch.device(device)), data.test.to(torch.device(device))
    passed = {(trial.k, trial.source, trial.repeat) for trial in done}
    sources: tuple[Source, ...] = ("condensed", "random") if config.random_baseline else ("condensed",)
    sizes = config.sizes_of(len(synthetic.tiles))
    images = {(k, source): _images(synthetic, train, k, source) for k, source in product(sizes, sources)}
    small_first = sorted(images, key=images.__getitem__)
    recorder = Recorder(train.device)
    for _, group in groupby(small_first, lambda which: min(images[which], config.batch_size)):
        alike = list(group)
        lanes = (
            _Training(k, source, repeat, synthetic, train, test, config)
            for (k, source), repeat in product(alike, range(config.repeats))
            if (k, source, repeat) not in passed
        )
        largest = images[alike[-1]]
        most = at_once or how_many(lane_bytes(config, data.facts(), largest), train.device)
        stops = train_lanes(lanes, most, recorder, most_images=largest, bf16=config.precision == "bf16")
        yield from _tested(stops, test, config.precision)


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


def _images(synthetic: SyntheticSet, train: RealSet, k: int, source: Source) -> int:
    """How many a training sees."""
    if source == "condensed":
        return len(synthetic.subset(k).labels())
    return sum(min(k, len(positions)) for positions in train.class_index())


class _Training(Lane):
    """A training of an evaluation, and what its tests have found so far."""

    def __init__(
        self,
        k: int,
        source: Source,
        repeat: int,
        synthetic: SyntheticSet,
        train: RealSet,
        test: RealSet,
        config: EvaluateConfig,
    ) -> None:
        self.k, self.source, self.repeat = k, source, repeat
        self.scores: list[float] = []
        if source == "condensed":
            subset = synthetic.subset(k)
            images, labels = subset.images().to(train.device), subset.labels().to(train.device)
        else:
            images, labels = random_images(train, k, config.seed, repeat)
        net = build_network(
            config.network,
            channels=test.channels,
            image_size=test.image_size,
            classes=test.num_classes,
            generator=stream(config.seed, "evaluate-weights", k, repeat),
        ).to(train.device)
        generator = stream(config.seed, f"evaluate-{source}", k, repeat)
        quarters = sorted({-(-config.epochs * i // 4) for i in (1, 2, 3, 4)})
        super().__init__(net, test.normalise(images), labels, test.normalisation, config, generator, quarters)


def _tested(trainings: Iterator[_Training], test: RealSet, precision: Precision) -> Iterator[Trial]:
    """Go on with trainings that stop for their tests; yields those that are done."""
    while True:
        with products(precision):  # and not while the caller has its turn
            training = next(trainings, None)
            if training is None:
                return
            training.scores.append(accuracy(training.net, test))
        if training.finished:
            scores = training.scores
            yield Trial(training.k, training.source, training.repeat, scores[-1], max(scores))
