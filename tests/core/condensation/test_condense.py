"""The loops: what must be equal bit for bit, what must stand still, what must be refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from mdc_core.compute.cuda_graph import Recorder
from mdc_core.compute.streams import stream
from mdc_core.condensation import checkpoint
from mdc_core.condensation.condense import Step, condense, result
from mdc_core.condensation.iteration import classes_per_batch, draw_iteration, loss_weights
from mdc_core.condensation.network_phase import NetworkPhase, initial_network, perturb
from mdc_core.condensation.real_batches import RandomBatches
from mdc_core.data.real_set import RealSet
from mdc_core.data.synthetic import initial_tiles
from mdc_core.errors import ConfigError, FormatError
from mdc_core.networks import build_network
from mdc_core.training import augment
from mdc_core.training.batched import fit
from tests.core.toys import FEATURE, toy_config, toy_real

pytestmark = pytest.mark.slow


def run(real: RealSet, **changes: object) -> list[Step]:
    return list(condense(toy_config(**changes), real))


def same(left: Step, right: Step) -> bool:
    return (
        torch.equal(left.state.tiles, right.state.tiles)
        and torch.equal(left.state.momentum, right.state.momentum)
        and left.state.optimiser_state.keys() == right.state.optimiser_state.keys()
        and all(
            torch.equal(left.state.optimiser_state[name], right.state.optimiser_state[name])
            for name in left.state.optimiser_state
        )
        and left.state.mls == right.state.mls
        and left.loss == right.loss
    )


def test_a_run_repeats_itself_whatever_the_global_seed(real: RealSet) -> None:
    first = run(real)
    torch.manual_seed(99)
    assert all(same(a, b) for a, b in zip(first, run(real), strict=True))
    assert not same(first[-1], run(real, seed=1)[-1])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"class_wise": True},
        {"freeze": "cumulative"},
        {"early": 1},
        {"pool": 2, "pool_samples": 16},
        FEATURE,
        FEATURE | {"subset_loss": "mls", "class_wise": True},
        FEATURE | {"at_tile_side": True},
    ],
)
def test_resuming_from_any_checkpoint_is_the_same_run(real: RealSet, changes: dict[str, object]) -> None:
    config = toy_config(**changes)
    whole = list(condense(config, real))
    for stop, step in enumerate(whole[:-1], start=1):
        saved = checkpoint.to_bytes(step.state, config)
        rest = list(condense(config, real, resume=checkpoint.resume(saved, config)))
        assert len(rest) == len(whole) - stop
        assert all(same(a, b) for a, b in zip(whole[stop:], rest, strict=True))


def test_at_the_tile_side_networks_see_shrunk_images_and_plain_tiles(real: RealSet) -> None:
    """Pixels that shrinking leaves out change nothing but the fingerprint; they do at the side of the images."""
    dropped = real.images.clone()
    dropped[..., 1::2, :] = dropped[..., 1::2] = 0
    other = replace(real, images=dropped)
    config = toy_config(**FEATURE, at_tile_side=True)
    assert (config.tile_side(8), config.matched_side(8)) == (4, 4)
    assert config.matched().network.depth == max(1, config.network.depth - 1)
    for ours, theirs in zip(condense(config, real), condense(config, other), strict=True):
        assert torch.equal(ours.state.tiles, theirs.state.tiles)
        assert ours.loss == theirs.loss
        assert ours.state.data != theirs.state.data
    usual, changed = run(real, **FEATURE)[-1], run(other, **FEATURE)[-1]
    assert usual.state.tiles.shape == ours.state.tiles.shape
    assert not torch.equal(usual.state.tiles, changed.state.tiles)
    assert not torch.equal(usual.state.tiles, ours.state.tiles)
    assert result(ours.state, real).images().shape[-1] == real.image_size


def test_only_features_are_matched_at_the_tile_side() -> None:
    with pytest.raises((ConfigError, ValidationError), match="method 'idc' makes no use of it"):
        toy_config(at_tile_side=True)


def test_mdc_switched_off_is_baseline_c(real: RealSet) -> None:
    """With the subset loss off, none of MDC's options touches the run; a weight of zero is the same as off."""
    baseline = run(real, subset_loss="none")
    for changes in (
        {"subset_loss": "none", "mls_period": 1, "freeze": "cumulative", "class_wise": True},
        {"subset_loss": "all", "subset_weights": (0.0, 0.0)},
    ):
        for ours, other in zip(baseline, run(real, **changes), strict=True):
            assert torch.equal(ours.state.tiles, other.state.tiles)
            assert ours.loss == other.loss
    assert not torch.equal(baseline[-1].state.tiles, run(real)[-1].state.tiles)


def test_measuring_draws_nothing(real: RealSet) -> None:
    """Until the first selection takes effect, runs that measure at other times are equal."""
    often = run(real, mls_period=3, outer_loops=3)
    never = run(real, mls_period=100, outer_loops=3)
    assert all(torch.equal(a.state.tiles, b.state.tiles) for a, b in zip(often, never, strict=True))
    assert often[-1].distances is not None
    assert never[-1].distances is None


def test_classes_one_by_one_are_classes_together(real: RealSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first updates alone: rounding grows."""
    config = toy_config(outer_loops=1)
    assert classes_per_batch(config, real) == 2
    batched = next(condense(config, real)).state.tiles
    monkeypatch.setattr("mdc_core.config.estimate.CPU_BATCH_BYTES", 1)
    assert classes_per_batch(config, real) == 1
    torch.testing.assert_close(next(condense(config, real)).state.tiles, batched, atol=1e-5, rtol=0)


def test_tile_updates_equal_a_literal_loop(real: RealSet) -> None:
    """Algorithm 1 without network training: momentum, the step size, and what both losses sum up to."""
    config = toy_config(n_data=0, outer_loops=1, inner_iterations=3, augment=("color", "crop", "cutout"))
    tiles = initial_tiles(config, real).double()
    momentum = torch.zeros_like(tiles)
    net = build_network(
        config.network, channels=3, image_size=8, classes=2, generator=stream(config.seed, "weights", 1)
    ).double()
    matched = [p for p in net.parameters() if p.ndim == 4]
    for inner in (1, 2, 3):
        draws = stream(config.seed, "match", 1, inner)
        leaf = tiles.clone().requires_grad_()
        loss = torch.zeros((), dtype=torch.float64)
        drawn = augment.draw(
            config.augment, 1, batches=2, normalisation=real.normalisation, image_size=8, generator=draws
        )
        for label in (0, 1):
            order = torch.randperm(16, generator=draws)[:8]
            params = drawn.rows(torch.tensor([label]))

            def gradient(images: torch.Tensor, label: int = label, params: augment.AugmentParams = params):  # type: ignore[no-untyped-def]
                view = augment.apply(params, real.normalise(images))
                target = torch.full((len(view),), label)
                return torch.autograd.grad(F.cross_entropy(net(view), target), matched, create_graph=True)

            goal = gradient(real.floats(real.class_index()[label][order]).double())
            for n in (3, 1):
                images = F.interpolate(leaf[:n, label].flatten(0, 1), size=(8, 8), mode="bilinear")
                pairs = zip(gradient(images), goal, strict=True)
                loss = loss + sum(((a - b.detach()) ** 2).sum() for a, b in pairs)
        (grad,) = torch.autograd.grad(loss, leaf)
        momentum = 0.5 * momentum + grad
        tiles = tiles - config.lr_base * (3 / 10) * (8 / 32) ** 2 * momentum
    (step,) = condense(config, real)
    moved = tiles - initial_tiles(config, real).double()
    actual = step.state.tiles.double() - initial_tiles(config, real).double()
    assert (actual - moved).norm() <= 1e-4 * moved.norm()


def test_every_class_has_an_augmentation_of_its_own(real: RealSet) -> None:
    """Of crop, scale and rotate one is picked for each class, not one for all classes of an iteration."""
    config = toy_config(augment=("crop", "rotate"))
    random = RandomBatches(config, real, initial_network(config, real, outer=1))
    differ = 0
    for inner in range(1, 41):
        params = draw_iteration(config, real, random, 1, inner).params
        assert params.shift is not None
        assert params.affine is not None
        turned = params.affine[:, 0, 1] != 0
        assert turned.shape == (2,)
        assert not params.shift[turned].any()
        differ += int(turned[0] != turned[1])
    assert 10 < differ < 30


def test_a_pool_is_trained_once_and_changed_for_every_loop(real: RealSet) -> None:
    """Without the change a network comes back as it was; with it, every filter moves as far as it is long."""
    config = toy_config(pool=1, pool_samples=32, pool_noise=0.0, n_data=0)
    phase = NetworkPhase(config, real, Recorder(torch.device("cpu")))
    taken = []
    for outer in (1, 2):
        phase.reset(outer)
        taken.append([parameter.detach().clone() for parameter in phase.net.parameters()])
        phase.train(16, inner=1)
    assert all(torch.equal(a, b) for a, b in zip(*taken, strict=True))
    untrained = initial_network(config, real, outer=1)
    assert not any(torch.equal(a, b) for a, b in zip(taken[0], untrained.parameters(), strict=True))
    before = [parameter.detach().clone() for parameter in untrained.parameters()]
    perturb(untrained, 0.5, stream(0, "change"))
    for was, now in zip(before, untrained.parameters(), strict=True):
        if was.ndim > 1:
            moved = (now.detach() - was).flatten(1).norm(dim=1)
            torch.testing.assert_close(moved, 0.5 * was.flatten(1).norm(dim=1))


def test_frozen_ranks_stay_bit_equal(real: RealSet) -> None:
    """What is frozen does not move: not by momentum, not by steps, and outside [0, 1] not by the clamp either."""
    steps = run(real, ipc=4, outer_loops=16, mls_period=1, inner_iterations=1)
    frozen_seen = outside = 0
    for before, after in pairwise(steps):
        frozen = before.state.mls.tracks[0].frozen("predecessor")
        still = before.state.tiles[:frozen]
        frozen_seen += frozen > 0
        outside += int(((still < 0) | (still > 1)).sum())
        assert torch.equal(still, after.state.tiles[:frozen])
        assert not after.state.momentum[:frozen].any()
        assert not torch.equal(before.state.tiles[frozen:], after.state.tiles[frozen:])
    assert frozen_seen >= 2, "this seed never froze anything: the test would prove nothing"
    assert outside, "nothing frozen lies outside [0, 1]: the test would not see a clamp"


@pytest.mark.parametrize("metric", ["feature", "gradient", "accuracy"])
def test_every_subset_metric_selects(real: RealSet, metric: str) -> None:
    steps = run(real, subset_metric=metric, accuracy_epochs=2)
    measured = [step.distances for step in steps if step.distances is not None]
    assert [step.outer for step in steps if step.distances is not None] == [1, 2, 4, 6]
    assert all(len(rows) == 1 and len(rows[0]) == 2 for rows in measured)
    assert len(steps[-1].state.mls.tracks[0].selections) == 4


def test_the_metric_accuracy_trains_by_its_own_recipe(real: RealSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by that of the network phase."""
    seen = []

    def watched(*args: Any) -> Iterator[int]:
        seen.append(args[4])
        yield from fit(*args)

    monkeypatch.setattr("mdc_core.condensation.condense.fit", watched)
    own = {"accuracy_epochs": 3, "accuracy_augment": ("flip", "scale"), "accuracy_cutmix": 0.25}
    run(real, subset_metric="accuracy", outer_loops=1, **own)
    assert len(seen) == 2  # the subsets of ipc 3
    for recipe in seen:
        assert (recipe.epochs, recipe.augment, recipe.cutmix) == (3, ("flip", "scale"), 0.25)


def test_class_wise_measures_each_class(real: RealSet) -> None:
    steps = run(real, class_wise=True)
    assert steps[0].distances is not None
    assert len(steps[0].distances) == 2
    assert steps[0].distances[0] != steps[0].distances[1]


def test_loss_weights() -> None:
    assert loss_weights(toy_config(), 2) == {3: 1.0, 2: 1.0}
    assert loss_weights(toy_config(subset_loss="none"), 2) == {3: 1.0}
    assert loss_weights(toy_config(subset_loss="all"), 2) == {1: 1.0, 2: 1.0, 3: 1.0}
    assert loss_weights(toy_config(ipc=1), 1) == {1: 1.0}


def test_a_smaller_synthetic_batch_moves_only_its_tiles(real: RealSet) -> None:
    (step,) = run(real, subset_loss="none", batch_syn_max=5, outer_loops=1, inner_iterations=1)
    start = initial_tiles(toy_config(), real)
    moved = (step.state.tiles != start).flatten(3).any(3)  # (N, C, f²)
    assert moved.sum((0, 2)).tolist() == [5, 5]


def test_condensing_lowers_the_matching_loss() -> None:
    config = toy_config(outer_loops=40, inner_iterations=4, lr_base=1.0, subset_loss="none", augment=())
    losses = [step.loss for step in condense(config, toy_real())]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_impossible_data_is_refused_before_the_first_step(real: RealSet) -> None:
    with pytest.raises(ConfigError, match=r"5·|= 20 of each class.*16"):
        next(condense(toy_config(ipc=5), real))
    with pytest.raises(ConfigError, match="factor is 8"):
        next(condense(toy_config(factor=8, ipc=1), toy_real(side=4, per_class=80)))


def test_a_checkpoint_of_other_images_is_refused(real: RealSet) -> None:
    state = next(condense(toy_config(), real)).state
    with pytest.raises(ConfigError, match="made from other images"):
        next(condense(toy_config(), toy_real(seed=1), resume=state))


def test_divergence_is_an_error_that_names_the_step_size(real: RealSet) -> None:
    with pytest.raises(ConfigError, match=r"diverged in outer loop \d+ .*lower lr_base, which is 1e\+30"):
        run(real, lr_base=1e30)


def test_checkpoints_refuse_other_settings_and_damage(real: RealSet) -> None:
    config = toy_config()
    saved = checkpoint.to_bytes(next(condense(config, real)).state, config)
    with pytest.raises(FormatError, match="made with seed = 0, not 1"):
        checkpoint.resume(saved, toy_config(seed=1))
    assert checkpoint.resume(saved, toy_config(outer_loops=9)).outer == 1
    later = checkpoint.to_bytes(run(real)[-1].state, config)
    with pytest.raises(FormatError, match="is of outer loop 6, but only 5 are asked for"):
        checkpoint.resume(later, toy_config(outer_loops=5))
    for broken in (saved[:100], b"", b"\0" * 50, saved[:-8], saved.replace(b"checkpoint/1", b"checkpoint/9")):
        with pytest.raises(FormatError):
            checkpoint.from_bytes(broken)
