"""Convolutions for batched training, and for differentiating gradients of the weights.

Gradient matching differentiates twice, with respect to the images. A convolution is linear in the images and in the
weight. So three maps suffice, and the derivative of each consists of the other two:

    y = x * w              convolve
    dL/dx = w ⋆ g          its adjoint, for g = dL/dy
    dL/dw = x ⊛ g          the weight's gradient, here one per part of the batch

Torch's own second derivative does not fit here. It also computes the weight's gradient, which matching does not use and
which is a fifth of the work. And it sums over the batch, where matching needs every class by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from mdc_core.geometry import Convolution

_LARGE_PART = 2e8
"""Operations from which a part is a convolution of its own on a GPU. Not measured yet."""

Padding = tuple[int, int]
Parts = tuple[int, ...]
"""Images of every part of a batch."""


class Conv2d(nn.Conv2d):
    """Torch's layer, stride 1. A weight (M, out, in, kh, kw) and bias (M, out) convolve M equal parts of the batch.

    An instance norm behind it cancels the bias, so the bias has no effect and its gradient is 0. A layer that is
    `normed` skips it on a GPU: adding it would take one more pass over all activations, forward and backward.
    """

    def __init__(self, *args: Any, normed: bool = False, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.normed = normed

    @classmethod
    def of(cls, shape: Convolution) -> Conv2d:
        """The layer of such a shape."""
        return cls(
            shape.inputs, shape.outputs, shape.kernel, padding=shape.padding, bias=shape.bias, normed=True
        )

    def forward(self, input: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H', W')."""
        if self.normed and self.bias is not None and _skips_bias(input):
            out = self._convolve(input, None)
            return _WithoutBias.apply(out, self.bias) if self.bias.requires_grad else out
        return self._convolve(input, self.bias)

    def _convolve(self, input: Tensor, bias: Tensor | None) -> Tensor:
        assert not isinstance(self.padding, str)
        if self.weight.ndim == 5:
            biases = [None] * len(self.weight) if bias is None else list(bias)
            parts = zip(input.chunk(len(self.weight)), self.weight, biases, strict=True)
            return torch.cat([F.conv2d(x, w, b, padding=self.padding) for x, w, b in parts])
        if self.weight.requires_grad:
            return F.conv2d(input, self.weight, bias, padding=self.padding)
        out: Tensor = _Convolve.apply(input, self.weight, bias, tuple(self.padding))
        return out


def weight_gradient(layer: nn.Conv2d, x: Tensor, g: Tensor, parts: Sequence[int]) -> Tensor:
    """Gradients (P, out, in, kh, kw) of the layer's weight, one for each of P parts of the batch.

    Differentiable once, with respect to x and g.

    Args:
        x: (B, in, H, W), what went into the layer.
        g: (B, out, H', W'), dL/dy.
        parts: images of every part; they add up to B.
    """
    assert not isinstance(layer.padding, str)
    gradients: Tensor = _WeightGradient.apply(x, g, layer.weight.shape, tuple(layer.padding), tuple(parts))
    return gradients


def _skips_bias(images: Tensor) -> bool:
    """Whether a bias without effect is skipped: on a GPU, which memory bandwidth limits."""
    return images.device.type == "cuda"


class _WithoutBias(torch.autograd.Function):
    """The output of a convolution whose bias was skipped; gives the bias the gradient 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(bias)
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (bias,) = ctx.saved_tensors
        return grads[0], torch.zeros_like(bias)


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
    """x ⊛ g, part by part. Parts that share one grouped convolution lie side by side in its channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, size: torch.Size, padding: Padding, parts: Parts) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.padding, ctx.parts = padding, parts
        by_part: dict[int, Tensor] = {}
        for group in _groups(parts, x.device, _work(size, g)):
            wide_x, wide_g = (_side_by_side(t, parts, group) for t in (x, g))
            count, shape = len(group), (len(group) * size[0], *size[1:])
            gradient = conv2d_weight(wide_x, shape, wide_g, padding=padding, groups=count)
            by_part.update(zip(group, gradient.view(count, *size), strict=True))  # each (out, in, kh, kw)
        return torch.stack(_in_order(by_part))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """For V = dL/d(x ⊛ g), part by part: dL/dx = V ⋆ g and dL/dg = x * V."""
        x, g = ctx.saved_tensors
        grad_x: dict[int, Tensor] = {}
        grad_g: dict[int, Tensor] = {}
        for group in _groups(ctx.parts, x.device, _work(grads[0].shape[1:], g)):
            count = len(group)
            weight = torch.cat([grads[0][part] for part in group])  # (count · out, in, kh, kw)
            if ctx.needs_input_grad[0]:
                wide = _adjoint(_side_by_side(g, ctx.parts, group), weight, ctx.padding, count)
                grad_x.update(zip(group, wide.chunk(count, dim=1), strict=True))
            if ctx.needs_input_grad[1]:
                wide = F.conv2d(_side_by_side(x, ctx.parts, group), weight, padding=ctx.padding, groups=count)
                grad_g.update(zip(group, wide.chunk(count, dim=1), strict=True))
        whole = [torch.cat(_in_order(by_part)) if by_part else None for by_part in (grad_x, grad_g)]
        return *whole, None, None, None


def _work(weight: Sequence[int], g: Tensor) -> int:
    """Operations per image of a convolution with that shape of weight and an output of g's size."""
    return 2 * math.prod(weight) * math.prod(g.shape[2:])


def _groups(parts: Parts, device: torch.device, work: int) -> Iterable[list[int]]:
    """Which parts share one grouped convolution: on a GPU all small ones of equal size, else each is its own group.

    Many subsets mean hundreds of parts. Small ones leave most of a GPU idle unless they are grouped. Large ones fill it
    alone, and grouping would slow them down.

    Args:
        work: operations per image.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for part, size in enumerate(parts):
        alone = device.type == "cpu" or size * work >= _LARGE_PART
        groups.setdefault((size, part if alone else -1), []).append(part)
    return groups.values()


def _side_by_side(images: Tensor, parts: Parts, group: Sequence[int]) -> Tensor:
    """P parts of a batch (B, ch, H, W), of b images each, as one batch (b, P · ch, H, W)."""
    pieces = torch.split_with_sizes(images, parts)
    if len(group) == 1:
        return pieces[group[0]]
    return torch.stack([pieces[part] for part in group], dim=1).flatten(1, 2)


def _in_order(by_part: dict[int, Tensor]) -> list[Tensor]:
    return [by_part[part] for part in range(len(by_part))]


def _adjoint(g: Tensor, weight: Tensor, padding: Padding, groups: int = 1) -> Tensor:
    """w ⋆ g (B, groups · in, H, W), for a weight (out, in, kh, kw) and g (B, out, H', W').

    A CPU computes 16 channels at a time, which wastes most of its work on an image's three. There one matrix product
    and a sum over the kernel's positions are cheaper, as long as the product is no larger than g.
    """
    out, channels, *kernel = weight.shape
    if g.device.type != "cpu" or groups > 1 or weight[0].numel() > out:
        return F.conv_transpose2d(g, weight, padding=padding, groups=groups)
    height, width = (side + k - 1 for side, k in zip(g.shape[2:], kernel, strict=True))
    columns = weight.permute(2, 3, 1, 0).reshape(-1, out) @ g.flatten(2)  # (B, kh · kw · in, H' · W')
    columns = columns.view(len(g), *kernel, channels, *g.shape[2:])  # (B, kh, kw, in, H', W')
    padded = g.new_zeros(len(g), channels, height, width)
    for i, j in product(*map(range, kernel)):
        padded[:, :, i : i + g.shape[2], j : j + g.shape[3]] += columns[:, i, j]
    return padded[:, :, padding[0] : height - padding[0], padding[1] : width - padding[1]]
