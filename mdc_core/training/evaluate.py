"""How good a set is at every size: train networks on its first k images per class, test them on real images."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

import torch
from torch import Tensor

from mdc_core.compute.batching import items_per_batch
from mdc_core.compute.cuda_graph import Recorder
from mdc_core.compute.precision import products
from mdc_core.compute.streams import stream
from mdc_core.config.estimate import training_bytes
from mdc_core.config.settings import EvaluateConfig, Precision, Source
from mdc_core.data.real_set import DataSet, RealSet
from mdc_core.data.synthetic import SyntheticSet, decode, shrink
from mdc_core.networks import build_network
from mdc_core.training.accuracy import accuracy
from mdc_core.training.batched import Training, train_batched


@dataclass(frozen=True)
class Trial:
    """One training."""

    k: int
    source: Source
    """What it trained on: the condensed set, k random real images per class, or k·f² shrunk ones."""
    repeat: int
    """0-based."""
    accuracy: float
    """Test accuracy in [0, 1] after the last epoch."""
    best: float
    """Best of four tests, after 25, 50, 75 and 100 % of the epochs, to compare with tables that report it."""
    epochs: int = 0
    """Epochs of the training; 0: the recipe's, as earlier releases wrote."""


@dataclass(frozen=True)
class Row:
    """Mean and spread of all trainings with the same k, source and epochs."""

    k: int
    source: Source
    mean: float
    """Mean test accuracy in [0, 1]."""
    std: float
    """Sample standard deviation over the repeats; 0 for one repeat."""
    best: float
    """Mean of the best of four tests."""
    repeats: int
    epochs: int


def evaluate(
    synthetic: SyntheticSet,
    data: DataSet,
    config: EvaluateConfig,
    device: torch.device | str = "cpu",
    done: Collection[Trial] = (),
    *,
    models_per_batch: int | None = None,
) -> Iterator[Trial]:
    """Train and test on every k; yields each training when it is done, small ones first.

    All sources start from the same initial weights at the same k and repeat. Trainings with equally many images per
    step run as one batch of models.

    Args:
        synthetic: judged as it is; pass `delivered()` to judge what devices receive.
        done: trainings of an interrupted evaluation, which are skipped.
        models_per_batch: most models in one batch; None: as many as the device trains efficiently.

    Raises:
        ConfigError: a k is not in 1..N.
    """
    train, test = data.train.to(torch.device(device)), data.test.to(torch.device(device))
    skipped = {(trial.k, trial.source, trial.epochs or config.epochs, trial.repeat) for trial in done}
    sources = config.sources_of(synthetic.factor)
    sizes = config.sizes_of(len(synthetic.tiles))
    images = {(k, source): _images(synthetic, train, k, source) for k, source in product(sizes, sources)}
    small_first = sorted(images, key=images.__getitem__)
    recorder = Recorder(train.device)
    for _, group in groupby(small_first, lambda which: min(images[which], config.batch_size)):
        alike = list(group)
        trainings = (
            _TrialTraining(
                k, source, repeat, synthetic, train, test, config.model_copy(update={"epochs": epochs})
            )
            for k, source in alike
            for epochs, repeat in product(config.epochs_of(source), range(config.repeats))
            if (k, source, epochs, repeat) not in skipped
        )
        largest = images[alike[-1]]
        most = models_per_batch or items_per_batch(
            training_bytes(config, data.facts(), largest), train.device
        )
        stops = train_batched(trainings, most, recorder, most_images=largest, bf16=config.precision == "bf16")
        yield from _tested(stops, test, config.precision)


def random_images(real: RealSet, k: int, seed: int, repeat: int) -> tuple[Tensor, Tensor]:
    """k random real images per class (or all of a smaller class), (M, ch, H, H) in [0, 1], and labels (M,)."""
    chosen = []
    for label, positions in enumerate(real.class_index()):
        order = torch.randperm(len(positions), generator=stream(seed, "random", repeat, label))
        chosen.append(positions[order[:k].to(positions.device)])
    all_chosen = torch.cat(chosen)
    return real.floats(all_chosen), real.labels[all_chosen]


def shrunk_images(real: RealSet, tiles: int, side: int, seed: int, repeat: int) -> tuple[Tensor, Tensor]:
    """`random_images`, `tiles` per class, shrunk to tiles (M, ch, s, s) and decoded again, and labels (M,).

    k·f² tiles take as many bytes as subset k of a condensed set. So this baseline shows what condensing adds.
    """
    images, labels = random_images(real, tiles, seed, repeat)
    return decode(shrink(images, side), real.image_size), labels


def summarise(trials: Iterable[Trial]) -> list[Row]:
    """A row per epochs, k and source: most epochs first, then by k, then by the name of the source."""
    groups: dict[tuple[int, int, Source], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((-trial.epochs, trial.k, trial.source), []).append(trial)
    return [
        Row(
            k=k,
            source=source,
            mean=statistics.fmean(t.accuracy for t in group),
            std=statistics.stdev(t.accuracy for t in group) if len(group) > 1 else 0.0,
            best=statistics.fmean(t.best for t in group),
            repeats=len(group),
            epochs=-negative_epochs,
        )
        for (negative_epochs, k, source), group in sorted(groups.items())
    ]


def accuracy_rows(rows: Iterable[Row], recipe: EvaluateConfig) -> list[dict[str, Any]]:
    """The accuracy table of a manifest: a row per epochs and k, with the baselines that have as many repeats."""
    table = {(row.epochs, row.k, row.source): row for row in rows}

    def figures(ours: Row, source: Source) -> dict[str, float | None]:
        row = table.get((ours.epochs, ours.k, source))
        mean, std = (None, None) if row is None or row.repeats != ours.repeats else (row.mean, row.std)
        return {f"{source}_mean": mean, f"{source}_std": std}

    return [
        {
            "network": recipe.network.label(),
            "epochs": row.epochs or recipe.epochs,
            "k": row.k,
            "mdc_mean": row.mean,
            "mdc_std": row.std,
            **figures(row, "random"),
            **figures(row, "shrunk"),
            "repeats": row.repeats,
        }
        for row in table.values()
        if row.source == "condensed"
    ]


def _images(synthetic: SyntheticSet, train: RealSet, k: int, source: Source) -> int:
    """How many images a training has."""
    if source == "condensed":
        return len(synthetic.subset(k).labels())
    wanted = k if source == "random" else k * synthetic.factor**2
    return sum(min(wanted, len(positions)) for positions in train.class_index())


class _TrialTraining(Training):
    """A training of an evaluation, and the accuracies of its tests so far."""

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
        self.k, self.source, self.repeat, self.epochs = k, source, repeat, config.epochs
        self.scores: list[float] = []
        if source == "condensed":
            subset = synthetic.subset(k)
            images, labels = subset.images().to(train.device), subset.labels().to(train.device)
        elif source == "random":
            images, labels = random_images(train, k, config.seed, repeat)
        else:
            side = synthetic.tiles.shape[-1]
            images, labels = shrunk_images(train, k * synthetic.factor**2, side, config.seed, repeat)
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


def _tested(trainings: Iterator[_TrialTraining], test: RealSet, precision: Precision) -> Iterator[Trial]:
    """Test every training that stops, and yield those that are done."""
    while True:
        with products(precision):  # not around the `yield`: the caller keeps its own precision
            training = next(trainings, None)
            if training is None:
                return
            training.scores.append(accuracy(training.net, test))
        if training.finished:
            scores = training.scores
            yield Trial(
                training.k, training.source, training.repeat, scores[-1], max(scores), training.epochs
            )
