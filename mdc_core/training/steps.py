"""The training steps that condensation and evaluation share.

All randomness of a step is drawn ahead on the CPU, for many steps at once. The step itself is arithmetic on tensors of
fixed address and shape, so that a GPU can record it as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mdc_core.compute.cuda_graph import Recorder, fill
from mdc_core.config.settings import AugmentOp, EvaluateConfig
from mdc_core.data.normalisation import Normalisation
from mdc_core.networks import Network
from mdc_core.training import augment
from mdc_core.training.augment import AugmentParams
from mdc_core.training.sgd import Sgd

STEPS_AHEAD = 64
"""Most steps that are drawn and run at once."""


@dataclass(frozen=True)
class Steps:
    """S training steps of R rows each, drawn ahead; every tensor is (S, R, …), except `lr`."""

    positions: Tensor
    """int64: the images of a step; padded with the step's first image."""
    weight: Tensor
    """float32: 1 / images of the step; 0 for padding."""
    params: AugmentParams
    partner: Tensor
    """int64: the row that an image's CutMix box is taken from."""
    boxes: Tensor
    """(S, R, 4) int64: the CutMix box; empty where CutMix is not applied."""
    cutmix_lambda: Tensor
    """float32: λ of CutMix, the share of the image outside its box."""
    lr: Tensor
    """(S, M) float32: step size of each of M models, which have R / M rows each."""

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, part: slice) -> Steps:
        """Some of the steps."""
        return self.map(lambda value: value[part])

    def unpadded(self, position: int) -> Steps:
        """One step of one model without its padding; tensors are (rows, …)."""
        rows = int(self.weight[position].count_nonzero())
        return self.map(lambda value: value[position, :rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> Steps:
        """The same steps with `change` applied to every tensor."""
        changed = {name: change(value) for name, value in vars(self).items() if name != "params"}
        return Steps(**changed, params=self.params.map(change))


def joined(blocks: Sequence[Steps], dim: int) -> Steps:
    """Blocks of steps one after the other (`dim` 0), or steps of several models side by side (`dim` 1)."""
    if len(blocks) == 1:
        return blocks[0]
    first = blocks[0]
    rest = {
        name: torch.cat([getattr(block, name) for block in blocks], dim)
        for name in vars(first)
        if name != "params"
    }
    params = {
        name: None if value is None else torch.cat([getattr(block.params, name) for block in blocks], dim)
        for name, value in vars(first.params).items()
    }
    return Steps(**rest, params=AugmentParams(**params))


def draw_steps(
    batches: Sequence[Tensor],
    rows: int,
    *,
    ops: Sequence[AugmentOp],
    cutmix: float,
    normalisation: Normalisation,
    image_size: int,
    lr: Tensor,
    generator: torch.Generator,
) -> Steps:
    """Steps of one model, on the CPU: every image has its own augmentation.

    Args:
        batches: (≤ rows,) int64 per step: the positions of its images.
        rows: R.
        cutmix: probability in [0, 1] that a step applies CutMix.
        lr: (S,) float32, step size of every step.
    """
    steps = len(batches)
    sizes = torch.tensor([len(batch) for batch in batches])
    positions = torch.stack([F.pad(batch, (0, rows - len(batch)), value=int(batch[0])) for batch in batches])
    used = torch.arange(rows) < sizes[:, None]  # (S, R)
    params = augment.draw(
        ops, rows, batches=steps, normalisation=normalisation, image_size=image_size, generator=generator
    )
    mixed = torch.rand(steps, generator=generator) < cutmix
    boxes, cutmix_lambda = augment.cutmix_boxes(steps, image_size, generator)
    # Sorting random keys in [0, 1) shuffles. Padding gets keys from 2 on, so that it stays behind the images.
    keys = torch.rand(steps, rows, generator=generator) + 2 * ~used
    return Steps(
        positions=positions,
        weight=(used / sizes[:, None]).float(),
        params=params.map(lambda value: value.view(steps, rows, *value.shape[1:])),  # (S·R, …) to (S, R, …)
        partner=keys.argsort(1),
        boxes=(boxes * mixed[:, None])[:, None].expand(-1, rows, -1),
        cutmix_lambda=torch.where(mixed, cutmix_lambda, 1.0).float()[:, None].expand(-1, rows),
        lr=lr[:, None],
    )


class Trainer:
    """Trains a network, or M stacked ones (`networks.stacked`), on images at fixed addresses.

    Args:
        images: (Q, ch, H, H), what the positions of steps refer to; may be refilled between calls.
        labels: (Q,), int64.
        prepare: makes normalised floats from rows of `images`.
        bf16: multiply in bfloat16; weights and sums stay as they are.
    """

    def __init__(
        self,
        net: Network,
        images: Tensor,
        labels: Tensor,
        recorder: Recorder,
        *,
        prepare: Callable[[Tensor], Tensor] = lambda images: images,
        bf16: bool = False,
    ) -> None:
        self.net, self.images, self.labels = net, images, labels
        self._prepare, self._bf16, self._recorder = prepare, bf16, recorder
        self.optimiser = Sgd(net)
        self._static_inputs: Steps | None = None
        self._position = torch.zeros((1,), dtype=torch.int64, device=labels.device)
        self._step: Callable[[], None]

    def run(self, steps: Steps) -> None:
        """Run all of them, at most `STEPS_AHEAD`. Every call has the same R and M.

        One model on a CPU computes no padding. Stacked models must: each may have another number of padded rows.
        """
        if not self._recorder.static_shapes and steps.lr.shape[1] == 1:
            for position in range(len(steps)):
                self._train(steps.unpadded(position))
            return
        if self._static_inputs is None:
            self._static_inputs = steps.map(
                lambda t: torch.empty((STEPS_AHEAD, *t.shape[1:]), dtype=t.dtype, device=self.labels.device)
            )
            self._step = self._recorder.recorded(self._next_step, [self._shapes(steps)])
        fill(self._static_inputs, steps)
        self._position.zero_()
        for _ in range(len(steps)):
            self._step()

    def _shapes(self, steps: Steps) -> Hashable:
        """The key by which kernels are chosen: everything that determines the shapes of a step."""
        weights = tuple(parameter.shape for parameter in self.net.parameters())
        return "train", weights, self.images.shape[1:], steps.positions.shape[1], self._bf16

    def _next_step(self) -> None:
        """The step at `_position`.

        The position is a tensor on the device, and the step advances it. A recorded step is thus the same sequence of
        kernels every time, and all steps of a block run without copying anything from the host.
        """
        assert self._static_inputs is not None
        now = self._static_inputs.map(lambda t: t.index_select(0, self._position).squeeze(0))  # (R, …)
        self._position += 1
        self._train(now)

    def _train(self, now: Steps) -> None:
        """One step: augment, mix, forward, loss, descend.

        Every row has its weight, 1 / images of its model or 0. So the weighted sum is the mean loss of a model without
        its padding, and for stacked models the sum of their means: none changes the gradient of another.
        """
        images = augment.apply(now.params, self._prepare(self.images[now.positions]))  # (R, ch, H, H)
        images = augment.mix(images, now.partner, now.boxes)
        labels = self.labels[now.positions]
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._bf16):
            logits = self.net(images)
        logits = logits.to(images.dtype)
        own, other = (
            F.cross_entropy(logits, target, reduction="none") for target in (labels, labels[now.partner])
        )
        losses = now.cutmix_lambda * own + (1 - now.cutmix_lambda) * other
        self.optimiser.step((now.weight * losses).sum(), now.lr)


def shuffled(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches (≤ batch,) of positions 0..count-1: every epoch in a new order, its last batch cut short."""
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), batch)


def draw_epoch(
    count: int,
    epoch: int,
    config: EvaluateConfig,
    normalisation: Normalisation,
    image_size: int,
    generator: torch.Generator,
) -> Iterator[Steps]:
    """The steps of one epoch (1-based) of an evaluation's recipe on `count` images."""
    lr = config.lr * 0.2 ** sum(epoch > milestone for milestone in config.milestones())
    batches = torch.split(torch.randperm(count, generator=generator), config.batch_size)
    for first in range(0, len(batches), STEPS_AHEAD):
        ahead = batches[first : first + STEPS_AHEAD]
        yield draw_steps(
            ahead,
            min(count, config.batch_size),
            ops=config.augment,
            cutmix=config.cutmix,
            normalisation=normalisation,
            image_size=image_size,
            lr=torch.full((len(ahead),), lr),
            generator=generator,
        )
