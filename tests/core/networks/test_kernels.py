"""The Triton kernels against torch's layers in double precision, by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

if find_spec("triton") is None:
    pytest.skip("Triton is not made for this system", allow_module_level=True)

from mdc_core.compute.streams import stream
from mdc_core.config.settings import NetworkConfig
from mdc_core.networks import build_network, kernels, layers, stacked

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def literal(x: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Tensor:
    """Torch's own layers, with scale and shift for each of several parts of the batch."""
    each = len(x) * x.shape[1] // weight.numel()
    scale, shift = (
        p.view(-1, x.shape[1]).repeat_interleave(each, 0)[:, :, None, None] for p in (weight, bias)
    )
    return F.avg_pool2d(F.relu(F.instance_norm(x, eps=1e-5) * scale + shift), pool)


def derivatives(of: Callable[..., Tensor], *values: Tensor) -> list[Tensor]:
    """Value, first derivatives, and those of the one by x in a direction."""
    x, weight, bias, g = (value.detach().clone().requires_grad_() for value in values[:4])
    y = of(x, weight, bias)
    grads = torch.autograd.grad(y, [x, weight, bias], g, create_graph=True)
    twice = torch.autograd.grad(grads[0], [g, x], values[4])
    return [value.detach().double().cpu() for value in (y, *grads, *twice)]


@pytest.mark.parametrize(
    ("shape", "pool", "parts"),
    [
        ((4, 3, 8, 8), 2, 1),
        ((6, 5, 6, 10), 2, 3),  # neither planes nor squares fill a block
        ((2, 3, 7, 5), 1, 1),
        ((3, 2, 12, 12), 4, 1),
        ((1, 1, 96, 96), 2, 1),  # more than one block holds
        ((40, 4, 2, 2), 2, 2),  # several programs
    ],
)
def test_value_and_both_derivatives(shape: tuple[int, int, int, int], pool: int, parts: int) -> None:
    draws = torch.Generator().manual_seed(3)
    batch, channels, height, width = shape
    affine = (channels,) if parts == 1 else (parts, channels)
    x, v = (torch.randn(shape, generator=draws, dtype=torch.float64) for _ in range(2))
    weight, bias = (torch.randn(affine, generator=draws, dtype=torch.float64) for _ in range(2))
    g = torch.randn(batch, channels, height // pool, width // pool, generator=draws, dtype=torch.float64)
    expected = derivatives(lambda x, weight, bias: literal(x, weight, bias, pool), x, weight, bias, g, v)
    actual = derivatives(
        lambda x, weight, bias: kernels.norm_relu_pool(x, weight, bias, pool, 1e-5),
        *(value.float().to(DEVICE) for value in (x, weight, bias, g, v)),
    )
    for one, other in zip(actual, expected, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


def test_activations_in_bfloat16_keep_sums_in_float32() -> None:
    """A mean far from 0, where eight bits would leave nothing of the variance."""
    x = (30 + torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))).bfloat16()
    weight, bias = torch.ones(3), torch.zeros(3)
    actual = kernels.norm_relu_pool(x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), 2, 1e-5)
    assert actual.dtype == torch.bfloat16
    expected = literal(x.double(), weight.double(), bias.double(), 2)
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("name", ["convnet", "resnet_ap"])
def test_networks_by_kernels_are_those_of_torch(
    name: Literal["convnet", "resnet_ap"], models: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits, and the grads of all weights; side by side too."""
    config = NetworkConfig(name=name, depth=2, width=4)
    nets = [
        build_network(config, channels=3, image_size=16, classes=2, generator=stream(model, "weights")).to(
            DEVICE
        )
        for model in range(models)
    ]
    net = stacked(nets) if models > 1 else nets[0]
    images = torch.randn(2 * models, 3, 16, 16, generator=stream(1, "images")).to(DEVICE)
    kernels_used, results = spied(monkeypatch), []
    for by_kernels in (False, True):
        monkeypatch.setattr(layers, "_is_on_gpu", lambda _, it=by_kernels: it)
        logits = net(images)
        grads = torch.autograd.grad(logits.square().sum(), list(net.parameters()))
        results.append([logits.detach(), *grads])
        assert bool(kernels_used) == by_kernels
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with every call of the kernels."""
    calls: list[str] = []
    run = kernels.norm_relu_pool

    def spy(*args: Any) -> Tensor:
        calls.append("called")
        return run(*args)

    monkeypatch.setattr(kernels, "norm_relu_pool", spy)
    return calls
