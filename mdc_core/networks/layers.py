"""Layers with cheaper first and second derivatives than torch's own.

On a CPU over half of a training step is not convolution (docs/results/performance.md). Two layers dominate. Average
pooling becomes a matrix product here. The second derivative of instance norm, for which torch runs dozens of
elementwise steps, is written out. On a GPU one fused kernel per direction does both (`networks.kernels`).
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LARGEST_PLANE = 128**2
"""Pixels of a channel that one kernel program can hold."""
_WIDEST_PRODUCT = 64
"""Pixels of a row up to which a matrix product pools it: its cost per pixel grows with the row. Torch pools others."""


class AveragePool(nn.Module):
    """Mean of every square of `factor`² pixels; pixels that do not fill a square are dropped."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, ch, H, W) to (B, ch, H // factor, W // factor)."""
        p, (height, width) = self.factor, x.shape[2:]
        if x.device.type != "cpu" or width > _WIDEST_PRODUCT or height % p or width % p:
            return F.avg_pool2d(x, p)
        out: Tensor = _Pool.apply(x, p)
        return out


class InstanceNorm(nn.GroupNorm):
    """Normalises every channel of every image to mean 0 and variance 1, then scales and shifts it by channel.

    Differentiable twice, the second time with respect to the input only. Scales and shifts (S, ch) belong to a batch of
    S equal parts, and are differentiable once. bfloat16 activations are normalised and differentiated in float32: sums
    over an image need more than eight bits.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ch, H, W) to the same shape."""
        if self.weight.ndim == 1:
            # The native kernels are called directly, and assume contiguous memory.
            out: Tensor = _InstanceNorm.apply(x.contiguous(), self.weight, self.bias, self.eps)
            return out
        each = len(x) // len(self.weight)
        weight, bias = (p.repeat_interleave(each, dim=0)[:, :, None, None] for p in (self.weight, self.bias))
        normal = F.group_norm(_at_least_float32(x), self.num_groups, eps=self.eps)
        return torch.addcmul(bias, normal, weight).to(x.dtype)


class NormReluPool(InstanceNorm):
    """Instance norm, ReLU, and the mean over squares of `pool`² pixels; one kernel per direction on a GPU.

    Differentiable like `InstanceNorm`.
    """

    def __init__(self, channels: int, pool: int = 1) -> None:
        super().__init__(channels)
        self.pool = AveragePool(pool)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ch, H, W) to (B, ch, H // pool, W // pool)."""
        kernels = _kernels(x.device) if _is_on_gpu(x) and self._fits_a_program(x) else None
        if kernels is not None:
            out: Tensor = kernels.norm_relu_pool(x, self.weight, self.bias, self.pool.factor, self.eps)
            return out
        y = F.relu_(super().forward(x))
        return y if self.pool.factor == 1 else self.pool(y)

    def _fits_a_program(self, x: Tensor) -> bool:
        """Whether the kernels can hold a plane of x in whole squares, without losing precision."""
        p, (height, width) = self.pool.factor, x.shape[2:]
        if x.dtype == torch.float64:
            return False
        return height * width <= _LARGEST_PLANE and p in (1, 2, 4) and height % p == 0 and width % p == 0


class Linear(nn.Linear):
    """Torch's layer; also takes weights (S, out, in) and biases (S, out) for a batch of S equal parts."""

    def forward(self, input: Tensor) -> Tensor:
        """(S·B, in) to (S·B, out)."""
        if self.weight.ndim == 2:
            return super().forward(input)
        parts = input.view(len(self.weight), -1, input.shape[1])  # (S, B, in)
        return torch.baddbmm(self.bias[:, None], parts, self.weight.mT).flatten(0, 1)


def _is_on_gpu(x: Tensor) -> bool:
    return x.device.type == "cuda"


@cache
def _kernels(device: torch.device) -> ModuleType | None:
    """`networks.kernels` after a trial run; None where Triton or its compiler is missing, with the reason logged."""
    try:
        from mdc_core.networks import kernels  # imported here: only torch for GPUs brings Triton

        x = torch.zeros(1, 1, 2, 2, device=device)
        kernels.norm_relu_pool(x, x[0, 0, 0, :1], x[0, 0, 0, :1], 2, 1.0)
    except Exception as error:  # a compiler may raise anything
        logging.getLogger(__name__).warning(
            "Triton's kernels do not run here; results are the same, but slower: %s", error
        )
        return None
    return kernels


@cache
def _pooling(factor: int, width: int, dtype: torch.dtype) -> Tensor:
    """The matrix (p · W, W/p) that averages p rows of W pixels, laid side by side."""
    with torch.inference_mode(False):
        column = torch.arange(width)
        matrix = torch.zeros(factor, width, width // factor, dtype=dtype)
        matrix[:, column, column // factor] = 1 / factor**2
        return matrix.flatten(0, 1)


def _at_least_float32(x: Tensor) -> Tensor:
    """bfloat16 as float32; other types unchanged."""
    return x.float() if x.dtype == torch.bfloat16 else x


class _Pool(torch.autograd.Function):
    """Rows of W pixels to W/p: p neighbouring rows are summed, then multiplied by a matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        batch, channels, height, width = x.shape
        matrix = _pooling(factor, width, x.dtype)
        # In bfloat16 a product is cheaper than a sum: it takes all p rows, which are contiguous, at once.
        if x.dtype == torch.bfloat16:
            pooled = x.reshape(-1, factor * width) @ matrix
        else:
            first, *others = x.reshape(-1, factor, width).unbind(1)
            pooled = sum(others, first) @ matrix[:width]
        return pooled.view(batch, channels, height // factor, width // factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _Spread.apply(grads[0], ctx.factor), None


class _Spread(torch.autograd.Function):
    """The adjoint of `_Pool`: every row of W/p pixels becomes p contiguous rows of W."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        batch, channels, height, width = g.shape
        spread = g.reshape(-1, width) @ _pooling(factor, factor * width, g.dtype).T
        return spread.view(batch, channels, factor * height, factor * width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _Pool.apply(grads[0], ctx.factor), None


class _InstanceNorm(torch.autograd.Function):
    """y = γ h + β, where h = s (x - mean x) and s = 1 / √(var x + ε), per image and channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        batch, channels, height, width = x.shape
        y, mean, rstd = torch.native_group_norm(
            _at_least_float32(x), weight, bias, batch, channels, height * width, channels, eps
        )
        ctx.save_for_backward(x, weight, mean, rstd)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        derivatives = _InstanceNormBackward.apply(grads[0], x, weight, mean, rstd, ctx.needs_input_grad[1])
        return (*derivatives, None)


class _InstanceNormBackward(torch.autograd.Function):
    """gx = s (u - mean u - h mean(u h)) for u = γ g, and the gradients of γ and β."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, affine: bool
    ) -> tuple[Tensor | None, ...]:
        batch, channels, height, width = x.shape
        ctx.save_for_backward(g, x, weight, mean, rstd)
        ctx.set_materialize_grads(False)
        shape = batch, channels, height * width, channels
        derivatives: tuple[Tensor | None, ...] = torch.ops.aten.native_group_norm_backward(
            _at_least_float32(g.contiguous()),
            _at_least_float32(x),
            mean,
            rstd,
            weight,
            *shape,
            [True, affine, affine],
        )
        grad_x, *grad_affine = derivatives
        return (None if grad_x is None else grad_x.to(x.dtype), *grad_affine)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """For v = dL/dgx, with all means over an image's channel and k = mean(v h), m = mean(u h):

        dL/dg = γ s (v - mean v - k h)
        dL/dx = -s² (m (v - mean v) + k (u - mean u) + (mean(u v) - mean u · mean v - 3 k m) h)
        """
        v = grads[0]
        if any(grad is not None for grad in grads[1:]):
            raise NotImplementedError("instance norm has second derivatives for its input only")
        if v is None:
            return (None,) * 6
        g, x, weight, mean, rstd = ctx.saved_tensors
        batch, channels, height, width = x.shape
        shape = (batch, channels, 1)
        s, scale = rstd.view(shape), weight.view(1, channels, 1)
        v, g, x = (t.reshape(batch, channels, -1) for t in (v, g, x))  # (B, ch, H·W)
        h, products = (x - mean.view(shape)).mul_(s), torch.empty_like(v)

        def mean_of(a: Tensor, b: Tensor) -> Tensor:
            return torch.mul(a, b, out=products).mean(2, keepdim=True)

        # Few temporaries, reused in place: each is as large as the activations, and no cache holds many of those.
        v0, g0 = v.mean(2, keepdim=True), g.mean(2, keepdim=True)
        k, m = mean_of(v, h), mean_of(g, h) * scale
        both = (mean_of(v, g) - v0 * g0) * scale
        grad_g = torch.addcmul(v, h, k, value=-1, out=products).sub_(v0).mul_(s * scale)
        square = -s.square()
        grad_x = h.mul_(square * (both - 3 * k * m)).addcmul_(v, square * m)
        grad_x.addcmul_(g, square * k * scale).sub_(square * (m * v0 + k * scale * g0))
        image = (batch, channels, height, width)
        return grad_g.view(image), grad_x.view(image), None, None, None, None
