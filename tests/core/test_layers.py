"""Layers against torch's own, and their second derivatives against finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mdc_core.networks.convolution import Conv2d
from mdc_core.networks.layers import AveragePool, InstanceNorm


@pytest.mark.parametrize(("side", "factor"), [(8, 2), (8, 4), (7, 2), (96, 2)])
def test_pooling_equals_torchs(side: int, factor: int) -> None:
    x = torch.randn(2, 3, side, side, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(AveragePool(factor)(x), F.avg_pool2d(x, factor))
    direction = torch.randn(2, 3, side // factor, side // factor, dtype=torch.float64)
    found = torch.autograd.grad(AveragePool(factor)(x), x, direction)
    torch.testing.assert_close(found, torch.autograd.grad(F.avg_pool2d(x, factor), x, direction))


def test_pooling_in_bfloat16_is_a_rounded_one() -> None:
    x = torch.randn(2, 3, 8, 8)
    found = AveragePool(2)(x.bfloat16())
    torch.testing.assert_close(found.float(), F.avg_pool2d(x, 2), atol=2e-2, rtol=0)


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
    found = torch.autograd.grad(ours(x), [x, *ours.parameters()], direction)
    expected = torch.autograd.grad(theirs(x), [x, *theirs.parameters()], direction)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_instance_norm_has_the_second_derivative_of_its_input() -> None:
    x = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    norm = InstanceNorm(3).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    for parameter in norm.parameters():
        parameter.requires_grad_(False)
    assert torch.autograd.gradcheck(norm, (x,))
    assert torch.autograd.gradgradcheck(norm, (x,))
    scale = norm.weight.requires_grad_()
    (slope,) = torch.autograd.grad(norm(x).square().sum(), scale, create_graph=True)
    with pytest.raises(NotImplementedError, match="its input only"):
        torch.autograd.grad(slope.sum(), x)
