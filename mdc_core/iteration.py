"""One iteration: match the gradients of every class while the network θ stands still (Algorithm 1, inner loop)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mdc_core import augment
from mdc_core.config import CondenseConfig
from mdc_core.data import RealSet
from mdc_core.matching import ClassMatch, match_class
from mdc_core.mls import MlsState
from mdc_core.networks import Network
from mdc_core.streams import stream
from mdc_core.synthetic import decode


@dataclass(frozen=True)
class Matched:
    """One iteration over all classes."""

    gradient: Tensor
    """Of the loss, with respect to the tiles (N, C, f², ch, s, s)."""
    classes: list[ClassMatch]


def match_classes(
    config: CondenseConfig,
    real: RealSet,
    net: Network,
    tiles: Tensor,
    state: MlsState,
    outer: int,
    inner: int,
    measured: bool,
) -> Matched:
    """Match every class; θ is fixed meanwhile, so the classes are independent.

    Every class has augmentation parameters of its own, the same for its real and its synthetic images.
    """
    draws = stream(config.seed, "match", outer, inner)
    side, classes = real.image_size, real.num_classes
    params = augment.draw(config.augment, classes, channels=real.channels, image_size=side, generator=draws)
    leaf = tiles.detach().requires_grad_()
    ranks, _, per_image = tiles.shape[:3]
    owners = torch.arange(classes).repeat_interleave(per_image).repeat(ranks)
    decoded = real.normalise(decode(leaf.flatten(0, 2), side))
    images = augment.apply(params.rows(owners), decoded).view(*tiles.shape[:4], side, side)
    batches = _real_batches(config, real, params, draws)
    matches = []
    for label, batch in enumerate(batches):
        own = images[:, label].detach()
        if config.tile_batch() < ranks * per_image:
            chosen = torch.randperm(ranks * per_image, generator=draws)[: config.tile_batch()]
            matches.append(_match_sample(config, net, own, batch, label, chosen))
            continue
        track = state.of_class(label)
        matches.append(
            match_class(
                net,
                own,
                batch,
                label,
                weights=loss_weights(config, track.selected),
                frozen=frozen_ranks(config, state, label),
                metric=config.metric,
                extra_cuts=range(1, config.ipc) if measured and config.subset_metric == "gradient" else (),
            )
        )
    slopes = torch.stack([match.image_gradient for match in matches], dim=1)
    return Matched(torch.autograd.grad(images, leaf, slopes)[0], matches)


def _real_batches(
    config: CondenseConfig, real: RealSet, params: augment.AugmentParams, draws: torch.Generator
) -> Iterator[Tensor]:
    """For every class up to `batch_real` random images (B, ch, H, H), normalised and augmented."""
    orders = [
        positions[torch.randperm(len(positions), generator=draws)[: config.batch_real].to(positions.device)]
        for positions in real.class_index()
    ]
    sizes = [len(order) for order in orders]
    owners = torch.arange(real.num_classes).repeat_interleave(torch.tensor(sizes))
    images = real.normalise(real.floats(torch.cat(orders)))
    return iter(torch.split_with_sizes(augment.apply(params.rows(owners), images), sizes))


def _match_sample(
    config: CondenseConfig, net: Network, images: Tensor, batch: Tensor, label: int, chosen: Tensor
) -> ClassMatch:
    """Match a random part of a class's tiles (`batch_syn_max`, without subset loss): the others have no gradient."""
    chosen = chosen.to(images.device)
    sample = images.flatten(0, 1)[chosen].unsqueeze(1)  # every tile as a rank of its own
    match = match_class(net, sample, batch, label, weights={len(chosen): 1.0}, frozen=0, metric=config.metric)
    gradient = torch.zeros_like(images).flatten(0, 1)
    gradient[chosen] = match.image_gradient.squeeze(1)
    return replace(match, image_gradient=gradient.view_as(images))


def subset_distances(config: CondenseConfig, matches: list[ClassMatch]) -> Tensor:
    """Subset distances (C, N-1), float64, of one iteration."""
    if config.subset_metric == "gradient":
        sizes = range(1, config.ipc)
        rows = [torch.stack([match.gradient_distances[n] for n in sizes]) for match in matches]
    else:
        rows = [match.feature_distances[:-1] for match in matches]
    return torch.stack(rows).double()


def loss_weights(config: CondenseConfig, selected: int) -> dict[int, float]:
    """Weight of every subset size in the loss of a class whose MLS has `selected` images (Eq. 4)."""
    weights = {config.ipc: 1.0}
    if config.uses_mls:
        weights[selected] = 1.0
    elif config.subset_loss == "all":
        given = config.subset_weights or (1.0,) * (config.ipc - 1)
        weights |= {n: w for n, w in enumerate(given, start=1) if w}
    return weights


def frozen_ranks(config: CondenseConfig, state: MlsState, label: int) -> int:
    """How many leading ranks of a class are constants in this outer loop (Eq. 10)."""
    return state.of_class(label).frozen(config.freeze) if config.uses_mls else 0
