"""Trainings by an evaluation's recipe, many of them as one batch of models, each with the numbers it has by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Generic, TypeVar

import torch
from torch import Tensor

from mdc_core.augment import Normalisation
from mdc_core.config import EvaluateConfig
from mdc_core.networks import Network, stacked
from mdc_core.recorder import Recorder
from mdc_core.train import STEPS_AHEAD, Steps, Trainer, draw_epoch, joined


class Lane:
    """One training: its network, its images, and its own draws, which no other training changes.

    Args:
        net: trained in place; its weights are those of `epoch` whenever the lane stops.
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
            block = next(self._blocks) if self._rest is None else self._rest
            taken.append(block[:count])
            self._rest = block[count:] if len(block) > count else None
            count -= len(taken[-1])
        return joined(taken, 0)


L = TypeVar("L", bound=Lane)


def train_lanes(lanes: Iterable[L], at_once: int, *, bf16: bool = False) -> Iterator[L]:
    """Train all of them, `at_once` together; yields a lane whenever it stops, with its network as it is then.

    Every lane takes its own steps at its own pace, and the place of one that is finished is given to the next. What
    it learns is the same in any company, up to rounding.

    Args:
        lanes: of one kind of network and image, and with as many images in a step.
        bf16: multiply in bfloat16.
    """
    waiting = iter(lanes)
    if at_once == 1:
        for lane in waiting:
            yield from _alone(lane, bf16)
    present = list(islice(waiting, at_once))
    while present:
        stack = _Stack(present, bf16)
        while not any(lane.finished for lane in present):
            yield from stack.advance()
        stack.save()
        present = [lane for lane in present if not lane.finished]
        present += islice(waiting, at_once - len(present))


def fit(
    net: Network,
    images: Tensor,
    labels: Tensor,
    normalisation: Normalisation,
    config: EvaluateConfig,
    generator: torch.Generator,
) -> Iterator[int]:
    """Train one network by an evaluation's recipe on normalised images (Q, ch, H, H); yields every epoch, 1-based."""
    lane = Lane(net, images, labels, normalisation, config, generator, range(1, config.epochs + 1))
    for stopped in _alone(lane, config.precision == "bf16"):
        yield stopped.epoch


def _alone(lane: L, bf16: bool) -> Iterator[L]:
    """Train it without a stack, whose layers are slower."""
    trainer = Trainer(lane.net, lane.images, lane.labels, Recorder(lane.labels.device), bf16=bf16)
    while not lane.finished:
        trainer.run(lane.take(min(STEPS_AHEAD, lane.left())))
        if lane.stopped:
            yield lane


class _Stack(Generic[L]):
    """Lanes as one batch of models, side by side in every step."""

    def __init__(self, lanes: Sequence[L], bf16: bool) -> None:
        self._lanes = lanes
        self._net = stacked([lane.net for lane in lanes])
        images = torch.cat([lane.images for lane in lanes])
        labels = torch.cat([lane.labels for lane in lanes])
        # A recorder of its own: the memory of a former stack's recording goes with it.
        self._trainer = Trainer(self._net, images, labels, Recorder(labels.device), bf16=bf16)
        for position, lane in enumerate(lanes):
            for place, value in zip(self._trainer.optimiser.velocity, lane.velocity or (), strict=False):
                place[position].copy_(value)

    def advance(self) -> Iterator[L]:
        """Train until some lanes stop, or for as many steps as are drawn at once; yields those that stop."""
        count = min(STEPS_AHEAD, *(lane.left() for lane in self._lanes))
        self._trainer.run(_side_by_side(self._lanes, [lane.take(count) for lane in self._lanes]))
        for position, lane in enumerate(self._lanes):
            if lane.stopped:
                self._give_back(position)
                yield lane

    def save(self) -> None:
        """Give every lane its weights and its velocity."""
        for position, lane in enumerate(self._lanes):
            self._give_back(position)
            lane.velocity = [velocity[position].clone() for velocity in self._trainer.optimiser.velocity]

    @torch.no_grad()
    def _give_back(self, position: int) -> None:
        own = self._lanes[position].net.parameters()
        for parameter, values in zip(own, self._net.parameters(), strict=True):
            parameter.copy_(values[position])


def _side_by_side(lanes: Sequence[Lane], blocks: Sequence[Steps]) -> Steps:
    """Steps of M models on the images of all lanes, one after the other."""
    moved, image = [], 0
    for position, (lane, steps) in enumerate(zip(lanes, blocks, strict=True)):
        rows = steps.positions.shape[1]
        moved.append(
            replace(steps, positions=steps.positions + image, partner=steps.partner + position * rows)
        )
        image += len(lane.images)
    return joined(moved, 1)
