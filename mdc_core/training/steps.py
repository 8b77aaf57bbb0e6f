"""Training a network: the steps that condensation and evaluation share, and how accuracy is measured.

What is random about a step is drawn ahead, for many steps at once and on the CPU; the step itself is arithmetic. It
works on tensors in fixed places and of fixed shapes where a GPU may record it.
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

STEPS_AHEAD = 64
"""Most steps that are drawn at once."""


@dataclass(frozen=True)
class Steps:
    """S training steps of R rows each, drawn ahead; every tensor is (S, R, …) but `lr`."""

    positions: Tensor
    """int64: the images of a step; padded with the first one of the step."""
    weight: Tensor
    """float32: 1 / images of the step, and 0 for padding."""
    params: AugmentParams
    partner: Tensor
    """int64: for CutMix, the row that an image's box is taken from."""
    boxes: Tensor
    """(S, R, 4) int64: its box, empty where CutMix is not applied."""
    cutmix_lambda: Tensor
    """float32: the share of the image that its box leaves."""
    lr: Tensor
    """(S, M) float32: step size of every one of M models, R / M rows each."""

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, part: slice) -> Steps:
        """Some of the steps."""
        return self.map(lambda value: value[part])

    def unpadded(self, position: int) -> Steps:
        """One step of one model, with the rows alone that are images of it; its tensors are (rows, …)."""
        rows = int(self.weight[position].count_nonzero())
        return self.map(lambda value: value[position, :rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> Steps:
        """Every tensor changed."""
        changed = {name: change(value) for name, value in vars(self).items() if name != "params"}
        return Steps(**changed, params=self.params.map(change))


def joined(blocks: Sequence[Steps], dim: int) -> Steps:
    """Steps one after the other (0), or those of several models side by side (1)."""
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
    """Steps of one model on the CPU: augmentation image by image, and CutMix at that probability.

    Args:
        batches: the positions (≤ rows,), int64, of every step.
        rows: R.
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
    # Sorting random keys shuffles; those above 1 keep the padding behind the images.
    keys = torch.rand(steps, rows, generator=generator) + 2 * ~used
    return Steps(
        positions=positions,
        weight=(used / sizes[:, None]).float(),
        params=params.map(lambda value: value.view(steps, rows, *value.shape[1:])),
        partner=keys.argsort(1),
        boxes=(boxes * mixed[:, None])[:, None].expand(-1, rows, -1),
        cutmix_lambda=torch.where(mixed, cutmix_lambda, 1.0).float()[:, None].expand(-1, rows),
        lr=lr[:, None],
    )


class Sgd:
    """The optimiser of every training here: momentum 0.9, weight decay 5e-4.

    The same numbers as torch's, up to rounding; that loads a compiler first: some 150 MB and seconds in every process.
    """

    def __init__(self, net: Network) -> None:
        self._parameters: list[Tensor] = list(net.parameters())
        self.velocity = [torch.zeros_like(parameter) for parameter in self._parameters]

    def reset(self) -> None:
        """Forget the velocity."""
        torch._foreach_zero_(self.velocity)

    def step(self, loss: Tensor, lr: Tensor) -> None:
        """Descend on `loss`, a scalar, by step sizes (M,): one, or one for each of M stacked models."""
        grads = torch.autograd.grad(loss, self._parameters)
        with torch.no_grad():
            grads = torch._foreach_add(grads, self._parameters, alpha=5e-4)
            torch._foreach_mul_(self.velocity, 0.9)
            torch._foreach_add_(self.velocity, grads)
            for parameter, velocity in zip(self._parameters, self.velocity, strict=True):
                factor = lr.to(parameter.dtype).view(-1, *[1] * (parameter.ndim - 1))
                parameter.addcmul_(velocity, factor, value=-1)


class Trainer:
    """Trains a network, or M stacked ones (`networks.stacked`), on images in fixed places.

    Args:
        images: (Q, ch, H, H), what the positions of steps refer to; may be refilled between calls.
        labels: (Q,), int64.
        prepare: what makes normalised floats of some of `images`.
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
        self._at = torch.zeros((1,), dtype=torch.int64, device=labels.device)
        self._step: Callable[[], None]

    def run(self, steps: Steps) -> None:
        """Do all of them, at most `STEPS_AHEAD`; they have R and M in common with all other steps.

        Padding is left out where shapes need not stay; side by side, models may differ in what they pad.
        """
        if not self._recorder.static_shapes and steps.lr.shape[1] == 1:
            for position in range(len(steps)):
                self._train(steps.unpadded(position))
            return
        if self._static_inputs is None:
            self._static_inputs = steps.map(
                lambda t: torch.empty((STEPS_AHEAD, *t.shape[1:]), dtype=t.dtype, device=self.labels.device)
            )
            self._step = self._recorder.recorded(self._one, [self._shapes(steps)])
        fill(self._static_inputs, steps)
        self._at.zero_()
        for _ in range(len(steps)):
            self._step()

    def _shapes(self, steps: Steps) -> Hashable:
        """What the kernels of a step are chosen by."""
        weights = tuple(parameter.shape for parameter in self.net.parameters())
        return "train", weights, self.images.shape[1:], steps.positions.shape[1], self._bf16

    def _one(self) -> None:
        assert self._static_inputs is not None
        now = self._static_inputs.map(lambda t: t.index_select(0, self._at).squeeze(0))
        self._at += 1
        self._train(now)

    def _train(self, now: Steps) -> None:
        images = augment.apply(now.params, self._prepare(self.images[now.positions]))
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
    """Endless positions (≤ batch,) of 0..count-1: epoch after epoch, each in a new order, its last batch cut short."""
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
    """The steps of one epoch, 1-based, of an evaluation's recipe on `count` images."""
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
