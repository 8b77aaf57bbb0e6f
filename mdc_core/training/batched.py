"""Trainings by an evaluation's recipe, many of them as one batch of models, each with the numbers it has by itself."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Generic, TypeVar

import torch
from torch import Tensor

from mdc_core.compute.cuda_graph import Recorder
from mdc_core.config.settings import EvaluateConfig
from mdc_core.data.normalisation import Normalisation
from mdc_core.networks import Network, stacked
from mdc_core.training.steps import STEPS_AHEAD, Steps, Trainer, draw_epoch, joined


class Training:
    """One training: its network, its images, and its own draws, which no other training changes.

    Args:
        net: trained in place; its weights are those of `epoch` whenever the training stops.
        images: (Q, ch, H, H), where the network is, normalised as `normalisation` says.
        labels: (Q,), int64.
        stops: the epochs, 1-based and ascending, after which it stops for others to look; the last one is its end.
    """

    def __init__(
        self,
        net: Network,
        images: Tensor,
        labels: Tensor,
        normalisation: Normalisation,
        config: EvaluateConfig,
        generator: torch.Generator,
        stops: Sequence[int],
    ) -> None:
        self.net, self.images, self.labels = net, images, labels
        self.velocity: list[Tensor] | None = None
        """Of its optimiser, where it goes from one batch of models to another."""
        count, side = len(images), images.shape[-1]
        self._per_epoch = -(-count // config.batch_size)
        self._stops = [epoch * self._per_epoch for epoch in stops]
        self._done = 0
        self._blocks = (
            steps
            for epoch in range(1, stops[-1] + 1)
            for steps in draw_epoch(count, epoch, config, normalisation, side, generator)
        )
        self._rest: Steps | None = None

    @property
    def epoch(self) -> int:
        """Epochs done, 0 at first."""
        return self._done // self._per_epoch

    @property
    def stopped(self) -> bool:
        """Whether it has reached one of its stops, and not gone on."""
        return self._done in self._stops

    @property
    def finished(self) -> bool:
        """Whether it has reached the last one."""
        return self._done == self._stops[-1]

    def left(self) -> int:
        """Steps to the next stop."""
        return next(stop for stop in self._stops if stop > self._done) - self._done

    def take(self, count: int) -> Steps:
        """The next steps, at most those that are left."""
        self._done += count
        taken: list[Steps] = []
        while count:
            block = self._drawn()
            taken.append(block[:count])
            self._rest = block[count:] if len(block) > count else None
            count -= len(taken[-1])
        return joined(taken, 0)

    def idle(self, count: int) -> Steps:
        """Steps like its next ones, which change no weight; only while it is not finished."""
        self._rest = self._drawn()
        return self._rest.map(lambda t: t.new_zeros((count, *t.shape[1:])))

    def _drawn(self) -> Steps:
        return next(self._blocks) if self._rest is None else self._rest


T = TypeVar("T", bound=Training)


def train_batched(
    trainings: Iterable[T], models_per_batch: int, recorder: Recorder, *, most_images: int, bf16: bool = False
) -> Iterator[T]:
    """Train all of them in batches of `models_per_batch`; yields each at every stop, with its network as it is then.

    Every training takes its own steps at its own pace, and the place of one that is finished is given to the next. What
    it learns is the same in any company, up to rounding.

    Args:
        trainings: of one kind of network and image, and with as many images in a step.
        most_images: Q of the largest.
        bf16: multiply in bfloat16.

    Raises:
        torch.OutOfMemoryError: not even one fits.
    """
    waiting = iter(trainings)
    if models_per_batch == 1:
        for training in waiting:
            yield from _alone(training, recorder, bf16)
    present = list(islice(waiting, models_per_batch))
    while present:
        try:
            stack = _Stack(present, most_images, recorder, bf16)
        except torch.OutOfMemoryError:
            if len(present) == 1:
                raise
            gc.collect()  # the stack that did not fit
            models_per_batch = -(-len(present) // 2)
            waiting = chain(present[models_per_batch:], waiting)
            present = present[:models_per_batch]
            continue
        while stack.is_used():
            yield from stack.advance()
            stack.refill(waiting)
        present = stack.save()


def fit(
    net: Network,
    images: Tensor,
    labels: Tensor,
    normalisation: Normalisation,
    config: EvaluateConfig,
    generator: torch.Generator,
    recorder: Recorder | None = None,
) -> Iterator[int]:
    """Train one network by an evaluation's recipe on normalised images (Q, ch, H, H); yields every epoch, 1-based.

    `recorder`: that of several trainings on a GPU, which then warm up once.
    """
    training = Training(net, images, labels, normalisation, config, generator, range(1, config.epochs + 1))
    for stopped in _alone(training, recorder or Recorder(labels.device), config.precision == "bf16"):
        yield stopped.epoch


def _alone(training: T, recorder: Recorder, bf16: bool) -> Iterator[T]:
    """Train it without a stack, whose layers are slower."""
    trainer = Trainer(training.net, training.images, training.labels, recorder, bf16=bf16)
    while not training.finished:
        trainer.run(training.take(min(STEPS_AHEAD, training.left())))
        if training.stopped:
            yield training


class _Stack(Generic[T]):
    """Trainings as one batch of models, side by side in every step.

    Each has a slot, with room for its images, so that another training can follow it there and a recording stays valid.
    """

    def __init__(self, trainings: Sequence[T], room: int, recorder: Recorder, bf16: bool) -> None:
        self._slots: list[T | None] = list(trainings)
        self._room, self._static_shapes = room, recorder.static_shapes
        self._net = stacked([training.net for training in trainings])
        first = trainings[0]
        images = first.images.new_zeros((len(trainings) * room, *first.images.shape[1:]))
        labels = first.labels.new_zeros(len(images))
        self._trainer = Trainer(self._net, images, labels, recorder, bf16=bf16)
        if (
            self._static_shapes
        ):  # what does not fit into the memory shows before any training has taken a step
            self._trainer.run(_side_by_side([first.idle(1)] * len(trainings), room))
        for slot, training in enumerate(trainings):
            self._load(slot, training)

    def is_used(self) -> bool:
        """Whether it is worth its place: slots that are empty compute too, but a smaller stack is recorded anew."""
        used = sum(training is not None for training in self._slots)
        return 2 * used > len(self._slots) if self._static_shapes else used == len(self._slots)

    def advance(self) -> Iterator[T]:
        """Train until some trainings stop, or for as many steps as are drawn at once; yields those that stop."""
        present = [training for training in self._slots if training is not None]
        count = min(STEPS_AHEAD, *(training.left() for training in present))
        idle = present[0].idle(count)
        steps = [idle if training is None else training.take(count) for training in self._slots]
        self._trainer.run(_side_by_side(steps, self._room))
        for slot, training in enumerate(self._slots):
            if training is not None and training.stopped:
                self._give_back(slot, training)
                yield training

    def refill(self, waiting: Iterator[T]) -> None:
        """Give the slots of trainings that are finished to those that wait, as far as there are any."""
        for slot, training in enumerate(self._slots):
            if training is not None and training.finished:
                following = next(waiting, None)
                self._slots[slot] = following
                if following is not None:
                    self._load(slot, following)

    def save(self) -> list[T]:
        """The trainings that are not finished, each with its weights and its velocity."""
        for slot, training in enumerate(self._slots):
            if training is not None:
                self._give_back(slot, training)
                training.velocity = [velocity[slot].clone() for velocity in self._trainer.optimiser.velocity]
        return [training for training in self._slots if training is not None]

    @torch.no_grad()
    def _load(self, slot: int, training: T) -> None:
        place = slice(slot * self._room, slot * self._room + len(training.images))
        self._trainer.images[place].copy_(training.images)
        self._trainer.labels[place].copy_(training.labels)
        for weights, own in zip(self._net.parameters(), training.net.parameters(), strict=True):
            weights[slot].copy_(own)
        for position, velocity in enumerate(self._trainer.optimiser.velocity):
            velocity[slot].copy_(training.velocity[position] if training.velocity else velocity.new_zeros(()))

    @torch.no_grad()
    def _give_back(self, slot: int, training: T) -> None:
        for own, weights in zip(training.net.parameters(), self._net.parameters(), strict=True):
            own.copy_(weights[slot])


def _side_by_side(steps: Sequence[Steps], room: int) -> Steps:
    """Steps of M models on their images, which have `room` each, one after the other."""
    moved = []
    for slot, own in enumerate(steps):
        rows = own.positions.shape[1]
        moved.append(replace(own, positions=own.positions + slot * room, partner=own.partner + slot * rows))
    return joined(moved, 1)
