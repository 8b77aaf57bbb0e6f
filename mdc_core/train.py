"""Training a network: the step that condensation and evaluation share, and how accuracy is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mdc_core import augment
from mdc_core.config import AugmentOp, EvaluateConfig
from mdc_core.data import RealSet
from mdc_core.networks import Network


class Sgd:
    """The optimiser of every training here: momentum 0.9, weight decay 5e-4.

    The same numbers as torch's, which loads a compiler first: some 150 MB and seconds in every process.
    """

    def __init__(self, net: Network, lr: float) -> None:
        self.lr = lr
        self._parameters: list[Tensor] = list(net.parameters())
        self._velocity = [torch.zeros_like(parameter) for parameter in self._parameters]

    def step(self, loss: Tensor) -> None:
        """Descend on `loss`, a scalar."""
        slopes = torch.autograd.grad(loss, self._parameters)
        with torch.no_grad():
            slopes = torch._foreach_add(slopes, self._parameters, alpha=5e-4)
            torch._foreach_mul_(self._velocity, 0.9)
            torch._foreach_add_(self._velocity, slopes)
            torch._foreach_add_(self._parameters, self._velocity, alpha=-self.lr)


def shuffled(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless positions (≤ batch,) of 0..count-1: epoch after epoch, each in a new order, its last batch cut short."""
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), batch)


def train_step(
    net: Network,
    optimiser: Sgd,
    images: Tensor,
    labels: Tensor,
    *,
    ops: Sequence[AugmentOp],
    cutmix: float,
    generator: torch.Generator,
) -> None:
    """One SGD step on normalised images (B, ch, H, H), augmented image by image, with CutMix at that probability."""
    rows, channels, side, _ = images.shape
    params = augment.draw(ops, rows, channels=channels, image_size=side, generator=generator)
    images = augment.apply(params, images)
    if cutmix and float(torch.rand((), generator=generator)) < cutmix:
        loss = _cutmix_loss(net, images, labels, generator)
    else:
        loss = F.cross_entropy(net(images), labels)
    optimiser.step(loss)


def train_samples(
    net: Network,
    optimiser: Sgd,
    real: RealSet,
    batches: Iterator[Tensor],
    samples: int,
    *,
    ops: Sequence[AugmentOp],
    cutmix: float,
    generator: torch.Generator,
) -> None:
    """Train on real data until at least `samples` images have been seen; takes its positions from `batches`."""
    seen = 0
    while seen < samples:
        positions = next(batches).to(real.device)
        images = real.normalise(real.floats(positions))
        labels = real.labels[positions]
        train_step(net, optimiser, images, labels, ops=ops, cutmix=cutmix, generator=generator)
        seen += len(positions)


def fit(
    net: Network,
    images: Tensor,
    labels: Tensor,
    config: EvaluateConfig,
    generator: torch.Generator,
) -> Iterator[int]:
    """Train by an evaluation's recipe on normalised images (M, ch, H, H); yields every epoch that is done, 1-based."""
    optimiser = Sgd(net, config.lr)
    for epoch in range(1, config.epochs + 1):
        optimiser.lr = config.lr * 0.2 ** sum(epoch > milestone for milestone in config.milestones())
        for positions in torch.split(torch.randperm(len(images), generator=generator), config.batch_size):
            chosen = positions.to(images.device)
            train_step(
                net,
                optimiser,
                images[chosen],
                labels[chosen],
                ops=config.augment,
                cutmix=config.cutmix,
                generator=generator,
            )
        yield epoch


@torch.no_grad()
def class_accuracy(net: Network, real: RealSet, batch: int = 500) -> Tensor:
    """Share of each class that is recognised: (C,) float64 in [0, 1], NaN for a class without images."""
    hits = torch.zeros(real.num_classes, dtype=torch.float64, device=real.labels.device)
    for positions in torch.split(torch.arange(len(real.labels), device=real.labels.device), batch):
        labels = real.labels[positions]
        correct = net(real.normalise(real.floats(positions))).argmax(1) == labels
        hits.index_add_(0, labels, correct.double())
    return hits / torch.bincount(real.labels, minlength=real.num_classes)


def accuracy(net: Network, real: RealSet) -> float:
    """Share of all images that is recognised, in [0, 1]."""
    counts = torch.bincount(real.labels, minlength=real.num_classes)
    return float((class_accuracy(net, real).nan_to_num() * counts).sum() / counts.sum())


def _cutmix_loss(net: Network, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Cross-entropy with one box of every image taken from a partner (CutMix, arXiv 1905.04899)."""
    top, bottom, left, right, kept = augment.cutmix_box(images.shape[-1], generator)
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    logits = net(mixed)
    own, other = F.cross_entropy(logits, labels), F.cross_entropy(logits, labels[partner])
    return kept * own + (1 - kept) * other
