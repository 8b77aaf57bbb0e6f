"""What is recorded on a GPU, run on meta tensors, which have shapes and types and are on a device that is not the CPU.

Whatever mixes devices fails here, and whatever would copy from the host in the middle of a recording; no number is
computed.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mdc_core.compute.cuda_graph import to_device
from mdc_core.compute.streams import stream
from mdc_core.condensation.condense import start_state
from mdc_core.condensation.iteration import TileUpdate, chunks, draw_iteration
from mdc_core.condensation.methods import METHODS
from mdc_core.condensation.mls import MlsState, Track
from mdc_core.condensation.network_phase import initial_network
from mdc_core.condensation.pool import MemoryPools
from mdc_core.config.settings import CondenseConfig
from mdc_core.data.real_set import RealSet
from mdc_core.networks import stacked
from mdc_core.training.steps import Steps, Trainer, draw_steps, joined
from tests.core.compute.test_cuda_graph import VARIANTS
from tests.core.replay import Eager, waits
from tests.core.toys import toy_config, toy_real

pytestmark = pytest.mark.slow

THERE = torch.device("meta")


class OneDevice(TorchDispatchMode):
    """Refuses every tensor that is elsewhere, and what makes the host wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            assert not isinstance(tensor, Tensor) or tensor.device == THERE, f"{func} on {tensor.device}"
        assert not waits(func, args), f"{func} waits"
        return result


def there(real: RealSet) -> RealSet:
    """The set on the device, without the checks that look at numbers."""
    real.class_index()
    moved = copy.copy(real)
    for name in ("images", "labels"):
        object.__setattr__(moved, name, getattr(real, name).to(THERE))
    object.__setattr__(moved, "_moments", {})
    moved.normalise(moved.images.float())  # the constants are there before anything is recorded
    return moved


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("measured", [False, True])
def test_an_iteration_stays_on_its_device(
    changes: dict[str, object], measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real = toy_config(**changes), toy_real(side=16)
    measured = measured and config.uses_mls
    state = MlsState((Track((1, 2)),) * (2 if config.class_wise else 1))  # with a frozen rank
    start = start_state(config, real)
    monkeypatch.setattr("mdc_core.condensation.iteration.classes_per_batch", lambda config, real: 2)
    networks = METHODS[config.method].networks(config, real, Eager(real.device), MemoryPools())
    update = TileUpdate(config, there(real), networks.net.to(THERE), Eager(THERE))
    update.begin(start.tiles.to(THERE), start.momentum.to(THERE), state, measured)
    batches = METHODS[config.method].real_batches(config, real, initial_network(config, real, outer=1))
    update._static_inputs = draw_iteration(config, real, batches, 1, 1).to(THERE)
    with OneDevice():
        update._iterate(chunks(config, real, state, measured, 2), measured)


def drawn(config: CondenseConfig, real: RealSet, models: int) -> Steps:
    """A step of every model, on the CPU."""
    blocks = [
        draw_steps(
            [torch.arange(8)],
            8,
            ops=config.network_augment(),
            cutmix=0.5,
            normalisation=real.normalisation,
            image_size=real.image_size,
            lr=torch.ones(1),
            generator=stream(0, "steps", number),
        )
        for number in range(models)
    ]
    return joined(blocks, 1)


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("models", [1, 3])
def test_a_training_step_stays_on_its_device(
    changes: dict[str, object], models: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no meta device
    config, real = toy_config(**changes), toy_real(side=16)
    nets = [initial_network(config, real, number) for number in range(models)]
    net, images = (nets[0] if models == 1 else stacked(nets)).to(THERE), there(real)
    trainer = Trainer(net, images.images, images.labels, Eager(THERE), prepare=images.prepare)
    trainer._static_inputs = drawn(config, real, models).map(lambda t: t.to(THERE))
    with OneDevice():
        trainer._next_step()


def test_the_check_sees_what_is_elsewhere() -> None:
    total, host = torch.zeros(3, device=THERE), torch.zeros(3)
    for mixes in (lambda: total.copy_(host), lambda: host + 1, lambda: host.to(THERE)):
        with pytest.raises(AssertionError, match="on cpu"), OneDevice():
            mixes()
    with OneDevice():
        total.add_(1).mul_(total.new_ones(()))


def test_the_host_waits_for_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch copies asynchronously into pinned memory when asked not to block: what arrives is read too early."""
    blocking = []

    def to(tensor: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        blocking.append(not non_blocking)
        return tensor

    monkeypatch.setattr(Tensor, "to", to)
    to_device(torch.zeros(1, device=THERE), torch.device("cpu"))
    assert blocking == [True]
