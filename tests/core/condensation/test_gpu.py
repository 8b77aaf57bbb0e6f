"""What only a GPU can tell: that recording works, that nothing waits, and that the numbers are those of a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from mdc_core.compute.cuda_graph import Recorder, _warn_once
from mdc_core.compute.streams import stream
from mdc_core.condensation.condense import condense, result, start_state
from mdc_core.condensation.iteration import TileUpdate
from mdc_core.condensation.methods import METHODS
from mdc_core.condensation.pool import MemoryPools
from mdc_core.config.settings import EvaluateConfig
from mdc_core.data.real_set import DataSet, RealSet
from mdc_core.data.synthetic import decode
from mdc_core.networks.convolution import Conv2d, weight_gradient
from mdc_core.networks.layers import InstanceNorm
from mdc_core.training.evaluate import evaluate
from tests.core.compute.test_cuda_graph import VARIANTS
from tests.core.toys import FEATURE, TOY_NETWORK, toy_config, toy_real

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("changes", VARIANTS)
def test_recorded_iterations_do_not_wait_for_the_gpu(changes: dict[str, object]) -> None:
    config, real = toy_config(**changes), toy_real(side=16).to("cuda")
    recorder = Recorder(real.device)
    networks = METHODS[config.method].networks(config, real, recorder, MemoryPools())
    update = TileUpdate(config, real, networks.net, recorder)
    state = start_state(config, real)
    update.begin(state.tiles, state.momentum, state.mls, measured=config.uses_mls)
    for inner in range(1, 9):  # until all is recorded, and every network of a pool has been there
        networks.ready(1, inner)
        update.run(1, inner)
    assert recorder.refusal is None
    with waiting_is_an_error():
        for inner in range(9, 12):
            networks.ready(1, inner)
            update.run(1, inner)


@pytest.mark.parametrize("waits", [False, True])
def test_every_call_takes_effect_also_where_recording_fails(waits: bool) -> None:
    recorder, total = Recorder(torch.device("cuda")), torch.zeros((), device="cuda")

    def add() -> None:
        total.add_(1 if not waits or float(total) >= 0 else 2)

    recorded = recorder.recorded(add, ["add"])
    for _ in range(7):
        recorded()
    assert float(total) == 7
    assert (recorder.refusal is not None) == waits


@pytest.mark.parametrize("changes", [{}, {"class_wise": True}, {"subset_loss": "all"}, FEATURE])
def test_a_recorded_run_equals_one_on_the_cpu(
    real: RealSet, changes: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    """Far enough that everything is replayed; rounding grows from loop to loop."""
    _warn_once.cache_clear()
    config = toy_config(**changes, outer_loops=2, inner_iterations=8)
    here, there = list(condense(config, real)), list(condense(config, real, "cuda"))
    assert not caplog.messages  # all was recorded
    start = start_state(config, real).tiles
    moved, expected = there[-1].state.tiles.cpu() - start, here[-1].state.tiles - start
    assert (moved - expected).norm() <= 1e-2 * expected.norm()


def test_an_evaluation_is_near_one_on_the_cpu(real: RealSet, caplog: pytest.LogCaptureFixture) -> None:
    """Trainings as one batch of models, some of which end before others, and all of them recorded."""
    _warn_once.cache_clear()
    *_, last = condense(toy_config(outer_loops=2), real)
    delivered = result(last.state, real).delivered()
    recipe = EvaluateConfig(epochs=20, repeats=2, network=TOY_NETWORK, batch_size=8)
    here, there = (
        {
            (trial.k, trial.source, trial.repeat): trial.accuracy
            for trial in evaluate(delivered, DataSet("toy", real, real), recipe, device)
        }
        for device in ("cpu", "cuda")
    )
    assert there == pytest.approx(here, abs=0.15)
    assert not caplog.messages


def derivatives(device: str, of: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> list[Tensor]:
    """Value, grad, and the grad's derivative in a direction of its own."""
    leaf = x.to(device).requires_grad_()
    y = of(leaf)
    (grad,) = torch.autograd.grad(y, leaf, direction.to(device), create_graph=True)
    (second,) = torch.autograd.grad(
        (grad * torch.linspace(-1, 1, x[0].numel(), device=device).view(x[0].shape)).sum(), leaf
    )
    return [value.detach().cpu() for value in (y, grad, second)]


def test_tiles_are_enlarged_as_on_the_cpu() -> None:
    tiles = torch.rand(5, 3, 4, 4, generator=stream(1, "tiles"))
    results = []
    for device in ("cpu", "cuda"):
        leaf = tiles.to(device).requires_grad_()
        images = decode(leaf, 8)
        assert images.is_contiguous()
        (grad,) = torch.autograd.grad(images.square().sum(), leaf)
        results.append([images.detach().cpu(), grad.cpu()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("permuted", [False, True])
def test_instance_norm_is_that_of_the_cpu(permuted: bool) -> None:
    norm = InstanceNorm(3).requires_grad_(False)
    x, direction = (torch.randn(4, 5, 3, 2).permute(3, 2, 1, 0) for _ in range(2))
    if not permuted:
        x, direction = x.contiguous(), direction.contiguous()
    here = derivatives("cpu", norm, x, direction)
    there = derivatives("cuda", norm.to("cuda"), x, direction)
    for one, other in zip(there, here, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parts", [(2, 2, 2, 2), (1, 3, 1, 3)])
def test_gradients_by_parts_are_those_of_the_cpu(parts: tuple[int, ...]) -> None:
    """In double precision, which no product rounds."""
    layer = Conv2d(3, 5, 3, padding=1).double()
    x, g = (torch.randn(sum(parts), channels, 6, 7, dtype=torch.float64) for channels in (3, 5))
    direction = torch.randn(len(parts), *layer.weight.shape, dtype=torch.float64)
    results = []
    for device in ("cpu", "cuda"):
        a, b = (t.to(device).requires_grad_() for t in (x, g))
        gradient = weight_gradient(layer, a, b, parts)
        grads = torch.autograd.grad(gradient, [a, b], direction.to(device))
        results.append([value.detach().cpu() for value in (gradient, *grads)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
