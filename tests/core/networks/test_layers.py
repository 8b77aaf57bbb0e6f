"""Layers against torch's own, and their second derivatives against finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mdc_core.networks import convolution
from mdc_core.networks.convolution import Conv2d, weight_gradient
from mdc_core.networks.layers import AveragePool, InstanceNorm


@pytest.mark.parametrize(("side", "factor"), [(8, 2), (8, 4), (7, 2), (96, 2)])
def test_pooling_equals_torchs(side: int, factor: int) -> None:
    x = torch.randn(2, 3, side, side, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(AveragePool(factor)(x), F.avg_pool2d(x, factor))
    direction = torch.randn(2, 3, side // factor, side // factor, dtype=torch.float64)
    actual = torch.autograd.grad(AveragePool(factor)(x), x, direction)
    torch.testing.assert_close(actual, torch.autograd.grad(F.avg_pool2d(x, factor), x, direction))


def test_pooling_in_bfloat16_is_a_rounded_one() -> None:
    x = torch.randn(2, 3, 8, 8)
    actual = AveragePool(2)(x.bfloat16())
    torch.testing.assert_close(actual.float(), F.avg_pool2d(x, 2), atol=2e-2, rtol=0)


@pytest.mark.parametrize(("kernel", "padding"), [(3, 0), (3, 1), (3, 3), (1, 0)])
@pytest.mark.parametrize("out", [4, 32])
def test_the_way_back_to_few_channels_equals_torchs(kernel: int, padding: int, out: int) -> None:
    """Narrow and wide layers take different ways; the first derivative of either is a convolution."""
    layer = Conv2d(3, out, kernel, padding=padding).double().requires_grad_(False)
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(x, layer.weight, layer.bias, padding=padding)
    direction = torch.randn_like(plain)
    (expected,) = torch.autograd.grad(plain, x, direction)
    torch.testing.assert_close(torch.autograd.grad(layer(x), x, direction)[0], expected)


def test_instance_norm_equals_torchs_in_value_and_gradients() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    ours, theirs = InstanceNorm(3).double(), torch.nn.GroupNorm(3, 3).double()
    with torch.no_grad():
        for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.copy_(parameter.normal_())
    torch.testing.assert_close(ours(x), theirs(x))
    direction = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    actual = torch.autograd.grad(ours(x), [x, *ours.parameters()], direction)
    expected = torch.autograd.grad(theirs(x), [x, *theirs.parameters()], direction)
    for one, by_torch in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, by_torch)


@pytest.mark.parametrize("stacked", [False, True])
def test_instance_norm_takes_statistics_of_bfloat16_in_float32(stacked: bool) -> None:
    """What comes of rounded activations is rounded once: value, and gradients of input, scale and shift."""
    x = (10 + torch.randn(4, 3, 16, 16)).bfloat16()
    direction = torch.randn(4, 3, 16, 16).bfloat16()
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        norm = InstanceNorm(3)
        if stacked:
            norm.weight, norm.bias = (torch.nn.Parameter(p.detach().repeat(2, 1)) for p in norm.parameters())
        leaf = x.to(dtype).requires_grad_()
        y = norm(leaf)
        assert y.dtype == dtype
        results.append([y, *torch.autograd.grad(y, [leaf, *norm.parameters()], direction.to(dtype))])
    for rounded, exact in zip(*results, strict=True):
        torch.testing.assert_close(rounded.float(), exact, rtol=2**-8, atol=1e-6)


class Contiguous(TorchDispatchMode):
    """Refuses other inputs of the norm's kernels, which on a GPU take memory as it lies and do not ask."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__.startswith("native_group_norm"):
            assert all(value.is_contiguous() for value in args if isinstance(value, Tensor)), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("of", ["input", "gradient"])
def test_instance_norm_takes_tensors_that_lie_in_memory_in_any_way(of: str) -> None:
    """As grads do that come from an expanded mean, or from parts that lay side by side."""
    norm = InstanceNorm(3).double()
    plain = torch.randn(4, 4, 3, 2, dtype=torch.float64).permute(3, 2, 1, 0)
    x, direction = (plain if of == name else plain.contiguous() for name in ("input", "gradient"))
    leaf, other = x.requires_grad_(), x.detach().contiguous().requires_grad_()
    with Contiguous():
        actual = torch.autograd.grad(norm(leaf), [leaf, *norm.parameters()], direction)
    expected = torch.autograd.grad(
        F.group_norm(other, 3, norm.weight, norm.bias), [other, *norm.parameters()], direction.contiguous()
    )
    for one, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, theirs)


@pytest.mark.parametrize("parts", [(2, 2, 2, 2), (1, 3, 1, 3), (4, 1, 2, 1)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_parts_of_one_size_may_be_one_convolution(
    parts: tuple[int, ...], kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: gradients of a weight by parts, and what follows when they are differentiated again."""
    layer = Conv2d(3, 5, kernel, padding=kernel // 2).double()
    x = torch.randn(sum(parts), 3, 6, 7, dtype=torch.float64, requires_grad=True)
    g = torch.randn(sum(parts), 5, 6, 7, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(len(parts), *layer.weight.shape, dtype=torch.float64)

    def derivatives() -> list[Tensor]:
        actual = weight_gradient(layer, x, g, parts)
        return [actual, *torch.autograd.grad(actual, [x, g], direction)]

    one_by_one = derivatives()
    groups, gpu = convolution._groups, torch.device("meta")
    monkeypatch.setattr(convolution, "_groups", lambda parts, device, work: groups(parts, gpu, work))
    assert len(list(convolution._groups(parts, x.device, 1))) == len(set(parts))
    # What is large stays by itself.
    assert len(list(groups(parts, gpu, 10**8))) == sum(size > 1 for size in parts) + (1 in parts)
    for one, other in zip(derivatives(), one_by_one, strict=True):
        torch.testing.assert_close(one, other)


def test_instance_norm_has_the_second_derivative_of_its_input() -> None:
    x = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    norm = InstanceNorm(3).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    for parameter in norm.parameters():
        parameter.requires_grad_(False)
    for leaf in (x, torch.randn(3, 3, 3, 2, dtype=torch.float64).permute(3, 2, 1, 0).requires_grad_()):
        assert torch.autograd.gradcheck(norm, (leaf,))
        assert torch.autograd.gradgradcheck(norm, (leaf,))
    scale = norm.weight.requires_grad_()
    (grad,) = torch.autograd.grad(norm(x).square().sum(), scale, create_graph=True)
    with pytest.raises(NotImplementedError, match="its input only"):
        torch.autograd.grad(grad.sum(), x)
