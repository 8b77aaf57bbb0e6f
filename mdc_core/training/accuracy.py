"""How many images a network recognises."""

from __future__ import annotations

import torch
from torch import Tensor

from mdc_core.config.estimate import TEST_BATCH
from mdc_core.data.real_set import RealSet
from mdc_core.networks import Network


@torch.no_grad()
def class_accuracy(net: Network, real: RealSet, batch: int = TEST_BATCH) -> Tensor:
    """Accuracy per class, (C,) float64 in [0, 1]; NaN for a class without images."""
    correct = torch.zeros(real.num_classes, dtype=torch.float64, device=real.labels.device)
    for positions in torch.split(torch.arange(len(real.labels), device=real.labels.device), batch):
        labels = real.labels[positions]
        is_correct = net(real.normalise(real.floats(positions))).argmax(1) == labels
        correct.index_add_(0, labels, is_correct.double())
    return correct / torch.bincount(real.labels, minlength=real.num_classes)


def accuracy(net: Network, real: RealSet) -> float:
    """Accuracy over all images, in [0, 1]."""
    counts = torch.bincount(real.labels, minlength=real.num_classes)
    return float((class_accuracy(net, real).nan_to_num() * counts).sum() / counts.sum())
