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
"""Operations of a part that is a convolution of its own on a GPU. Not measured yet."""

Padding = tuple[int, int]
Parts = tuple[int, ...]


class Conv2d(nn.Conv2d):
    """Torch's layer, stride 1. A weight (M, out, in, kh, kw) and bias (M, out) convolve M equal parts of the batch.

    An instance norm behind it takes the bias off again, whose gradient is 0: where the layer is `normed` next, a GPU
    leaves it out, which would be a pass over all activations each way.
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
        if self.normed and self.bias is not None and _shifts_are_costly(input):
            out = self._convolved(input, None)
            return _Unshifted.apply(out, self.bias) if self.bias.requires_grad else out
        return self._convolved(input, self.bias)

    def _convolved(self, input: Tensor, bias: Tensor | None) -> Tensor:
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
    """Gradient of the layer's weight for g = dL/dy (B, out, H', W') and images x (B, in, H, W), by parts of both.

    (P, out, in, kh, kw) for P parts, whose sizes add up to B; may be differentiated by both, once.
    """
    assert not isinstance(layer.padding, str)
    found: Tensor = _WeightGradient.apply(x, g, layer.weight.shape, tuple(layer.padding), tuple(parts))
    return found


def _shifts_are_costly(images: Tensor) -> bool:
    """Whether activations are on a device that is limited by memory."""
    return images.device.type == "cuda"


class _Unshifted(torch.autograd.Function):
    """What a convolution without its bias gives, where the bias would change nothing: its gradient is 0."""

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
    """x ⊛ g, part by part; parts that are one convolution together lie side by side in its channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, size: torch.Size, padding: Padding, parts: Parts) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.padding, ctx.parts = padding, parts
        found: dict[int, Tensor] = {}
        for group in _groups(parts, x.device, _work(size, g)):
            wide, grad = (_side_by_side(t, parts, group) for t in (x, g))
            count, shape = len(group), (len(group) * size[0], *size[1:])
            gradient = conv2d_weight(wide, shape, grad, padding=padding, groups=count)
            found.update(zip(group, gradient.view(count, *size), strict=True))
        return torch.stack(_in_order(found))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """For V = dL/d(x ⊛ g), part by part: dL/dx = V ⋆ g and dL/dg = x * V."""
        x, g = ctx.saved_tensors
        of_x: dict[int, Tensor] = {}
        of_g: dict[int, Tensor] = {}
        for group in _groups(ctx.parts, x.device, _work(grads[0].shape[1:], g)):
            count = len(group)
            weight = torch.cat([grads[0][part] for part in group])  # (count · out, in, kh, kw)
            if ctx.needs_input_grad[0]:
                back = _adjoint(_side_by_side(g, ctx.parts, group), weight, ctx.padding, count)
                of_x.update(zip(group, back.chunk(count, dim=1), strict=True))
            if ctx.needs_input_grad[1]:
                wide = _side_by_side(x, ctx.parts, group)
                grad = F.conv2d(wide, weight, padding=ctx.padding, groups=count)
                of_g.update(zip(group, grad.chunk(count, dim=1), strict=True))
        found = [torch.cat(_in_order(of)) if of else None for of in (of_x, of_g)]
        return *found, None, None, None


def _work(weight: Sequence[int], g: Tensor) -> int:
    """Operations per image of a convolution with a weight of that shape and an output like g."""
    return 2 * math.prod(weight) * math.prod(g.shape[2:])


def _groups(parts: Parts, device: torch.device, work: int) -> Iterable[list[int]]:
    """Numbers of the parts that are one convolution: on a GPU those of one size that are small, else each by itself.

    With many subsets there are hundreds of parts, and what is small leaves most of a GPU idle. A large part fills it,
    and grouped convolutions are slower by themselves.

    Args:
        work: operations per image.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for part, size in enumerate(parts):
        alone = device.type == "cpu" or size * work >= _LARGE_PART
        groups.setdefault((size, part if alone else -1), []).append(part)
    return groups.values()


def _side_by_side(images: Tensor, parts: Parts, group: Sequence[int]) -> Tensor:
    """Some parts, of b images each, of a batch (B, ch, H, W): (b, P · ch, H, W)."""
    pieces = torch.split_with_sizes(images, parts)
    if len(group) == 1:
        return pieces[group[0]]
    return torch.stack([pieces[part] for part in group], dim=1).flatten(1, 2)


def _in_order(by_part: dict[int, Tensor]) -> list[Tensor]:
    return [by_part[part] for part in range(len(by_part))]


def _adjoint(g: Tensor, weight: Tensor, padding: Padding, groups: int = 1) -> Tensor:
    """w ⋆ g (B, groups · in, H, W), for a weight (out, in, kh, kw) and g (B, out, H', W').

    A CPU computes sixteen channels at a time: what leads back to the three of an image is cheaper as one product and a
    sum over the places of the kernel, as long as the product is not larger than g.
    """
    out, channels, *kernel = weight.shape
    if g.device.type != "cpu" or groups > 1 or weight[0].numel() > out:
        return F.conv_transpose2d(g, weight, padding=padding, groups=groups)
    height, width = (side + k - 1 for side, k in zip(g.shape[2:], kernel, strict=True))
    columns = weight.permute(2, 3, 1, 0).reshape(-1, out) @ g.flatten(2)  # (B, kh · kw · in, H' · W')
    columns = columns.view(len(g), *kernel, channels, *g.shape[2:])
    found = g.new_zeros(len(g), channels, height, width)
    for i, j in product(*map(range, kernel)):
        found[:, :, i : i + g.shape[2], j : j + g.shape[3]] += columns[:, i, j]
    return found[:, :, padding[0] : height - padding[0], padding[1] : width - padding[1]]
