"""Matching and training as the papers write them: every subset by itself, parameter by parameter, step by step.

Slow on purpose, of torch's own layers, and the oracle of the engine; benchmarks compare with it too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdc_core.networks import Network
from mdc_core.networks.layers import AveragePool, InstanceNorm, NormReluPool
from mdc_core.training import augment
from mdc_core.training.steps import Steps

View = Callable[[Tensor], Tensor]
"""Normalises and augments images (B, ch, H, H)."""


def literal_network(net: Network) -> Network:
    """A copy with the same weights, made of torch's own layers."""
    net = copy.deepcopy(net)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, InstanceNorm):
                norm = nn.GroupNorm(child.num_groups, child.num_channels)
                norm.load_state_dict(child.state_dict())
                layer: nn.Module = norm.to(child.weight)
                if isinstance(child, NormReluPool):
                    layer = nn.Sequential(layer, nn.ReLU(), nn.AvgPool2d(child.pool.factor))
                setattr(parent, name, layer)
            elif isinstance(child, AveragePool):
                setattr(parent, name, nn.AvgPool2d(child.factor))
    return net


def literal_distance(metric: str, synthetic: tuple[Tensor, ...], real: tuple[Tensor, ...]) -> Tensor:
    """Sum over the parameters, one after the other."""
    total = synthetic[0].new_zeros(())
    for gs, gr in zip(synthetic, real, strict=True):
        if metric == "mse":
            total = total + ((gs - gr) ** 2).sum()
        elif metric == "l1":
            total = total + (gs - gr).abs().sum()
        else:
            for row_s, row_r in zip(gs, gr, strict=True):
                cosine = (row_s * row_r).sum() / (row_s.norm() * row_r.norm())
                total = total + 1 - cosine
    return total


def literal_gradient(net: Network, images: Tensor, label: int, *, graph: bool) -> tuple[Tensor, ...]:
    """Gradient of the mean cross-entropy for the 4-D parameters."""
    weights = [p for p in net.parameters() if p.ndim == 4]
    target = torch.full((len(images),), label, device=images.device)
    return torch.autograd.grad(F.cross_entropy(net(images), target), weights, create_graph=graph)


def literal_match(
    net: Network,
    tiles: Tensor,
    real_images: Tensor,
    label: int,
    view: View,
    weights: Mapping[int, float],
    frozen: int,
    metric: str,
) -> tuple[Tensor, Tensor]:
    """The loss over the subsets in `weights`, and its gradient for the tiles (N, f², ch, s, s), zero where frozen."""
    net = literal_network(net)
    tiles = tiles.clone().requires_grad_()
    per_image, side = tiles.shape[1], real_images.shape[-1]
    real_gradient = literal_gradient(net, view(real_images), label, graph=False)
    loss = tiles.new_zeros(())
    for n, weight in weights.items():
        images = literal_decode(tiles[:n], side)
        assert len(images) == n * per_image
        gradient = literal_gradient(net, view(images), label, graph=True)
        loss = loss + weight * literal_distance(metric, gradient, real_gradient)
    (grad,) = torch.autograd.grad(loss, tiles)
    grad[:frozen] = 0
    return loss.detach(), grad


def literal_feature_match(
    net: Network,
    trained: Network,
    tiles: Tensor,
    real_images: Tensor,
    label: int,
    view: View,
    weights: Mapping[int, float],
    frozen: int,
    calibration: float,
    decay: float,
) -> tuple[Tensor, Tensor]:
    """The loss of feature matching, and its gradient for the tiles (N, f², ch, s, s), zero where frozen."""
    net, trained = literal_network(net), literal_network(trained)
    tiles = tiles.clone().requires_grad_()
    side = real_images.shape[-1]
    loss = tiles.new_zeros(())
    for n, weight in weights.items():
        images = net.block_outputs(view(literal_decode(tiles[:n], side)))
        for feature, real in zip(images, net.block_outputs(view(real_images)), strict=True):
            mean = real.mean(0)
            variance = ((real - mean) ** 2).sum() / (len(real) - 1)
            distance = ((feature.mean(0) - mean) ** 2).sum() / variance
            loss = loss + weight / sum(weights.values()) * distance
    for rank, own in enumerate(tiles, start=1):
        for tile in own:
            logits = trained(view(literal_decode(tile[None, None], side)))
            wrong = F.cross_entropy(logits, torch.tensor([label]))
            loss = loss + calibration * rank**-decay * wrong
    (grad,) = torch.autograd.grad(loss, tiles)
    grad[:frozen] = 0
    return loss.detach(), grad


def literal_decode(tiles: Tensor, side: int) -> Tensor:
    """Rank by rank and tile by tile: (N·f², ch, H, H)."""
    pieces = torch.cat(list(tiles))
    return F.interpolate(pieces, size=(side, side), mode="bilinear", align_corners=False)


def literal_feature_distances(net: Network, tiles: Tensor, real_images: Tensor, view: View) -> list[Tensor]:
    """F(1..N), each from its own forward pass (Eq. 5)."""
    real_feature = net.features(view(real_images)).mean(0)
    distances = []
    for n in range(1, len(tiles) + 1):
        feature = net.features(view(literal_decode(tiles[:n], real_images.shape[-1]))).mean(0)
        distances.append(((real_feature - feature) ** 2).sum().detach())
    return distances


def literal_training(net: Network, images: Tensor, labels: Tensor, blocks: Iterable[Steps]) -> None:
    """Train by torch's own optimiser and layers, on the images that take part alone, one step after the other."""
    optimiser = torch.optim.SGD(net.parameters(), 0.0, momentum=0.9, weight_decay=5e-4)
    for now in (steps.map(itemgetter(i)) for steps in blocks for i in range(len(steps))):
        size = int((now.weight > 0).sum())
        positions, partner = now.positions[:size], now.partner[:size]
        batch = augment.apply(now.params.map(itemgetter(slice(size))), images[positions])
        top, bottom, left, right = now.boxes[0].tolist()
        mixed = batch.clone()
        mixed[:, :, top:bottom, left:right] = batch[partner, :, top:bottom, left:right]
        logits, own, cutmix_lambda = net(mixed), labels[positions], float(now.cutmix_lambda[0])
        loss = cutmix_lambda * F.cross_entropy(logits, own) + (1 - cutmix_lambda) * F.cross_entropy(
            logits, own[partner]
        )
        optimiser.param_groups[0]["lr"] = float(now.lr)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
