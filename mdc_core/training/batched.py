"""Batched training: many trainings by an evaluation's recipe, as one batch of models.

Every training keeps its own images, draws and pace, so its result does not depend on what trains alongside.
"""

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
    """One training: its network, its images, and draws of its own.

    Args:
        net: trained in place; up to date whenever the training stops.
        images: (Q, ch, H, H), on the network's device, normalised as `normalisation` says.
        labels: (Q,), int64.
        stops: epochs, 1-based and ascending, after which it stops for a test; the last one is its end.
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
        """The optimiser's, saved when the training moves from one batch of models to another."""
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
        """Whether it is at one of its stops."""
        return self._done in self._stops

    @property
    def finished(self) -> bool:
        """Whether it is at its last stop."""
        return self._done == self._stops[-1]

    def steps_left(self) -> int:
        """Steps to the next stop."""
        return next(stop for stop in self._stops if stop > self._done) - self._done

    def next_steps(self, count: int) -> Steps:
        """The next `count` steps, at most as many as are left."""
        self._done += count
        taken: list[Steps] = []
        # Draws come in blocks of up to STEPS_AHEAD steps. What a call leaves of a block is kept for the next call, so
        # that the draws do not depend on `count`.
        while count:
            block = self._next_block()
            taken.append(block[:count])
            self._rest = block[count:] if len(block) > count else None
            count -= len(taken[-1])
        return joined(taken, 0)

    def no_op_steps(self, count: int) -> Steps:
        """Steps shaped like the next ones that change no weight: loss weights and step sizes are 0.

        Call it only while the training is not finished.
        """
        self._rest = self._next_block()
        return self._rest.map(lambda t: t.new_zeros((count, *t.shape[1:])))

    def _next_block(self) -> Steps:
        return next(self._blocks) if self._rest is None else self._rest


T = TypeVar("T", bound=Training)


def train_batched(
    trainings: Iterable[T],
    models_per_batch: int,
    recorder: Recorder,
    *,
    most_images: int,
    bf16: bool = False,
) -> Iterator[T]:
    """Run all trainings, `models_per_batch` at a time; yields a training at each of its stops, its network up to date.

    A slot in the batch is refilled as soon as its training is finished. Results are independent of what trains
    alongside, up to rounding.

    Args:
        trainings: with one kind of network, one image size, and equally many images per step.
        most_images: Q of the largest.
        bf16: multiply in bfloat16.

    Raises:
        torch.OutOfMemoryError: not even one training fits.
    """
    waiting = iter(trainings)
    if models_per_batch == 1:
        for training in waiting:
            yield from _train_alone(training, recorder, bf16)
    present = list(islice(waiting, models_per_batch))
    while present:
        try:
            stack = _Stack(present, most_images, recorder, bf16)
        except torch.OutOfMemoryError:
            # The stack has taken no step, so half as many can start instead; the others go first in the queue.
            if len(present) == 1:
                raise
            gc.collect()  # frees the stack that did not fit
            models_per_batch = -(-len(present) // 2)
            waiting = chain(present[models_per_batch:], waiting)
            present = present[:models_per_batch]
            continue
        while stack.is_worthwhile():
            yield from stack.advance()
            stack.refill(waiting)
        present = stack.unload()


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

    Args:
        recorder: share one among trainings on a GPU, so that they warm up once.
    """
    training = Training(net, images, labels, normalisation, config, generator, range(1, config.epochs + 1))
    for stopped in _train_alone(training, recorder or Recorder(labels.device), config.precision == "bf16"):
        yield stopped.epoch


def _train_alone(training: T, recorder: Recorder, bf16: bool) -> Iterator[T]:
    """Train without a stack, whose layers are slower."""
    trainer = Trainer(training.net, training.images, training.labels, recorder, bf16=bf16)
    while not training.finished:
        trainer.run(training.next_steps(min(STEPS_AHEAD, training.steps_left())))
        if training.stopped:
            yield training


class _Stack(Generic[T]):
    """Trainings as one batch of models.

    Each has a slot with room for `room` images. Another training can take over a slot without changing any shape or
    address, so a recorded step stays valid.
    """

    def __init__(self, trainings: Sequence[T], room: int, recorder: Recorder, bf16: bool) -> None:
        self._slots: list[T | None] = list(trainings)
        self._room, self._static_shapes = room, recorder.static_shapes
        self._net = stacked([training.net for training in trainings])
        first = trainings[0]
        images = first.images.new_zeros((len(trainings) * room, *first.images.shape[1:]))
        labels = first.labels.new_zeros(len(images))
        self._trainer = Trainer(self._net, images, labels, recorder, bf16=bf16)
        if self._static_shapes:  # a no-op step, to run out of memory before any training has advanced
            self._trainer.run(_side_by_side([first.no_op_steps(1)] * len(trainings), room))
        for slot, training in enumerate(trainings):
            self._load(slot, training)

    def is_worthwhile(self) -> bool:
        """Whether the stack should go on. Empty slots compute too, but a smaller stack must be recorded anew."""
        used = sum(training is not None for training in self._slots)
        return 2 * used > len(self._slots) if self._static_shapes else used == len(self._slots)

    def advance(self) -> Iterator[T]:
        """Train to the nearest stop of any training, at most `STEPS_AHEAD` steps; yields those that stop."""
        present = [training for training in self._slots if training is not None]
        count = min(STEPS_AHEAD, *(training.steps_left() for training in present))
        # Before `next_steps`: a training that finishes has no further block to take the shape from.
        no_op = present[0].no_op_steps(count)
        steps = [no_op if training is None else training.next_steps(count) for training in self._slots]
        self._trainer.run(_side_by_side(steps, self._room))
        for slot, training in enumerate(self._slots):
            if training is not None and training.stopped:
                self._copy_weights_back(slot, training)
                yield training

    def refill(self, waiting: Iterator[T]) -> None:
        """Give the slots of finished trainings to waiting ones, as far as there are any."""
        for slot, training in enumerate(self._slots):
            if training is not None and training.finished:
                following = next(waiting, None)
                self._slots[slot] = following
                if following is not None:
                    self._load(slot, following)

    def unload(self) -> list[T]:
        """The unfinished trainings, each with its weights and its velocity."""
        for slot, training in enumerate(self._slots):
            if training is not None:
                self._copy_weights_back(slot, training)
                training.velocity = [velocity[slot].clone() for velocity in self._trainer.optimiser.velocity]
        return [training for training in self._slots if training is not None]

    @torch.no_grad()
    def _load(self, slot: int, training: T) -> None:
        rows = slice(slot * self._room, slot * self._room + len(training.images))
        self._trainer.images[rows].copy_(training.images)
        self._trainer.labels[rows].copy_(training.labels)
        for weights, own in zip(self._net.parameters(), training.net.parameters(), strict=True):
            weights[slot].copy_(own)
        for position, velocity in enumerate(self._trainer.optimiser.velocity):
            velocity[slot].copy_(training.velocity[position] if training.velocity else velocity.new_zeros(()))

    @torch.no_grad()
    def _copy_weights_back(self, slot: int, training: T) -> None:
        for own, weights in zip(training.net.parameters(), self._net.parameters(), strict=True):
            own.copy_(weights[slot])


def _side_by_side(steps: Sequence[Steps], room: int) -> Steps:
    """Steps of M models as steps of one batch: (S, R, …) each becomes (S, M·R, …).

    Model m has its images at m · room in the stack, and its rows at m · R in the batch.
    """
    shifted = []
    for slot, own in enumerate(steps):
        rows = own.positions.shape[1]
        shifted.append(replace(own, positions=own.positions + slot * room, partner=own.partner + slot * rows))
    return joined(shifted, 1)
