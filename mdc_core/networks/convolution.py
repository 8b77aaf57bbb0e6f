"""Convolutions for training many models at once, and for differentiating gradients of the weights.

Gradient matching differentiates twice, for the images. A convolution is linear in the images and in the weight, so all
that takes is three maps, each of which is made of the others when it is differentiated:

    y = x * w              convolve
    dL/dx = w ⋆ g          its adjoint, for g = dL/dy
    dL/dw = x ⊛ g          the weight's gradient, here one for each of several parts of the batch

Torch's second derivative of a convolution computes the weight's gradient too, a fifth of the work, and nobody asks for
it; and it sums over the batch, where matching wants every class by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

Padding = tuple[int, int]
Parts = tuple[int, ...]


class Conv2d(nn.Conv2d):
    """Torch's layer, stride 1. A weight (M, out, in, kh, kw) and bias (M, out) convolve M equal parts of the batch."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H', W')."""
        assert not isinstance(self.padding, str)
        if self.weight.ndim == 5:
            biases = [None] * len(self.weight) if self.bias is None else list(self.bias)
            parts = zip(input.chunk(len(self.weight)), self.weight, biases, strict=True)
            return torch.cat([F.conv2d(x, w, b, padding=self.padding) for x, w, b in parts])
        if self.weight.requires_grad:
            return super().forward(input)
        out: Tensor = _Convolve.apply(input, self.weight, self.bias, tuple(self.padding))
        return out


def weight_gradient(layer: nn.Conv2d, x: Tensor, g: Tensor, parts: Sequence[int]) -> Tensor:
    """Gradient of the layer's weight for g = dL/dy (B, out, H', W') and images x (B, in, H, W), by parts of both.

    (P, out, in, kh, kw) for P parts, whose sizes add up to B; may be differentiated by both, once.
    """
    assert not isinstance(layer.padding, str)
    found: Tensor = _WeightGradient.apply(x, g, layer.weight.shape, tuple(layer.padding), tuple(parts))
    return found


class _Convolve(torch.autograd.Function):
    """y = x * w + b for a constant w and b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: Padding) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _Adjoint.apply(grads[0], weight, ctx.padding), None, None, None


class _Adjoint(torch.autograd.Function):
    """w ⋆ g for a constant w."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, padding: Padding) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding = padding
        return _adjoint(g, weight, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _Convolve.apply(grads[0], weight, None, ctx.padding), None, None


class _WeightGradient(torch.autograd.Function):
    """x ⊛ g, part by part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, size: torch.Size, padding: Padding, parts: Parts) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.padding, ctx.parts = padding, parts
        pieces = zip(torch.split_with_sizes(x, parts), torch.split_with_sizes(g, parts), strict=True)
        return torch.stack([conv2d_weight(x, size, g, padding=padding) for x, g in pieces])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """For V = dL/d(x ⊛ g), part by part: dL/dx = V ⋆ g and dL/dg = x * V."""
        x, g = (torch.split_with_sizes(saved, ctx.parts) for saved in ctx.saved_tensors)
        of_x = of_g = None
        if ctx.needs_input_grad[0]:
            pieces = [_adjoint(b, v, ctx.padding) for b, v in zip(g, grads[0], strict=True)]
            of_x = torch.cat(pieces)
        if ctx.needs_input_grad[1]:
            pieces = [F.conv2d(a, v, padding=ctx.padding) for a, v in zip(x, grads[0], strict=True)]
            of_g = torch.cat(pieces)
        return of_x, of_g, None, None, None


def _adjoint(g: Tensor, weight: Tensor, padding: Padding) -> Tensor:
    """w ⋆ g (B, in, H, W), for a weight (out, in, kh, kw) and g (B, out, H', W').

    A CPU computes sixteen channels at a time: what leads back to the three of an image is cheaper as one product and a
    sum over the places of the kernel, as long as the product is not larger than g.
    """
    out, channels, *kernel = weight.shape
    if g.device.type != "cpu" or weight[0].numel() > out:
        return F.conv_transpose2d(g, weight, padding=padding)
    height, width = (side + k - 1 for side, k in zip(g.shape[2:], kernel, strict=True))
    columns = weight.permute(2, 3, 1, 0).reshape(-1, out) @ g.flatten(2)  # (B, kh · kw · in, H' · W')
    columns = columns.view(len(g), *kernel, channels, *g.shape[2:])
    found = g.new_zeros(len(g), channels, height, width)
    for i, j in product(*map(range, kernel)):
        found[:, :, i : i + g.shape[2], j : j + g.shape[3]] += columns[:, i, j]
    return found[:, :, padding[0] : height - padding[0], padding[1] : width - padding[1]]
