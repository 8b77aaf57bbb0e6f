"""Instance norm, ReLU and average pooling as one Triton kernel each way: most of a GPU's time otherwise.

Between two convolutions torch's own kernels read and write every activation a dozen times (docs/performance.md).
Here a plane, one channel of one image, is held on the chip meanwhile: it is read once each way, and written once. For

    y = P(r γ h + r β),   h = s (x - mean x),   s = 1 / √(var x + ε),   r = 1 where γ h + β > 0, else 0,

with P the mean over squares of p² pixels and P* its adjoint, u = r P* g for g = dL/dy, and all means over a plane:

    dL/dx = γ s (u - mean u - h mean(u h)),   dL/dγ = sum(u h),   dL/dβ = sum u,

and once more, for v = the gradient of dL/dx, k = mean(v h) and m = γ mean(u h):

    dL/dg = P(r γ s (v - mean v - k h)),
    dL/dx = -s² (m (v - mean v) + k γ (u - mean u) + (γ mean(u v) - γ mean u mean v - 3 k m) h).

Loaded on a GPU alone (`networks.layers`); Triton's interpreter runs the same code on a CPU, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAM = 2_048
"""Pixels of a program, of as many planes as fit."""
_PER_THREAD = 16


def norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, factor: int, eps: float) -> Tensor:
    """y (B, ch, H / p, W / p) of x (B, ch, H, W); may be differentiated twice, the second time by x alone.

    Sums are taken in float32, whatever x is.

    Args:
        weight: γ (ch,), or (S, ch) of S equal parts of the batch.
        bias: β, like γ.
        factor: p, a power of 2 that divides H and W.
        eps: ε.
    """
    out: Tensor = _NormReluPool.apply(x, weight, bias, factor, eps)
    return out


class _NormReluPool(torch.autograd.Function):
    """y, and what its gradients are made of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, factor: int, eps: float) -> Tensor:
        x, weight, bias = (t.contiguous() for t in (x, weight, bias))
        y = x.new_empty(*x.shape[:2], x.shape[2] // factor, x.shape[3] // factor)
        mean, rstd = (torch.empty(x.shape[:2], device=x.device) for _ in range(2))
        _start(_forward, x, weight, factor, x, weight, bias, y, mean, rstd, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.factor = factor
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        affine = any(ctx.needs_input_grad[1:3])
        found = _Backward.apply(grads[0], *ctx.saved_tensors, ctx.factor, affine)
        return (*found, None, None)


class _Backward(torch.autograd.Function):
    """The gradients of x, γ and β."""

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        rstd: Tensor,
        factor: int,
        affine: bool,
    ) -> tuple[Tensor | None, ...]:
        g, of_x = g.contiguous(), torch.empty_like(x)
        of_weight, of_bias = (torch.empty_like(mean) for _ in range(2))  # image by image
        _start(_backward, x, weight, factor, g, x, weight, bias, mean, rstd, of_x, of_weight, of_bias)
        ctx.save_for_backward(g, x, weight, bias, mean, rstd)
        ctx.factor = factor
        ctx.set_materialize_grads(False)
        if not affine:
            return of_x, None, None
        channels = weight.shape[-1]
        parts = (
            each.view(-1, x.shape[0] * channels // weight.numel(), channels) for each in (of_weight, of_bias)
        )
        return of_x, *(part.sum(1).view(weight.shape) for part in parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        v = grads[0]
        if any(grad is not None for grad in grads[1:]):
            raise NotImplementedError("instance norm has second derivatives for its input only")
        if v is None:
            return (None,) * 8
        g, x, weight, bias, mean, rstd = ctx.saved_tensors
        of_g, of_x = torch.empty_like(g), torch.empty_like(x)
        _start(_twice, x, weight, ctx.factor, v.contiguous(), g, x, weight, bias, mean, rstd, of_g, of_x)
        return of_g, of_x, *(None,) * 6


def _start(kernel: Any, x: Tensor, weight: Tensor, factor: int, *args: Tensor | float) -> None:
    """Run a kernel over all planes of x."""
    batch, channels, height, width = x.shape
    squares = (height // factor) * (width // factor)
    held = triton.next_power_of_2(squares) * factor**2
    planes, together = batch * channels, max(1, _PROGRAM // held)
    with torch.cuda.device_of(x):  # kernels start on the current GPU, whichever their tensors are on
        kernel[(triton.cdiv(planes, together),)](
            *args,
            planes,
            batch * weight.shape[-1] // weight.numel(),  # images of a part
            channels,
            width,
            squares,
            PLANES=together,
            SQUARES=triton.next_power_of_2(squares),
            FACTOR=factor,
            num_warps=min(32, max(1, together * held // (32 * _PER_THREAD))),
        )


@triton.jit
def _places(
    planes,
    each,
    channels,
    width,
    squares,
    PLANES: tl.constexpr,
    SQUARES: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """Of this program's planes: their numbers, whether they are there, and where things of them lie."""
    plane = tl.program_id(0) * PLANES + tl.arange(0, PLANES)
    there = plane < planes
    scale = plane // channels // each * channels + plane % channels
    square = tl.arange(0, SQUARES)
    inside = there[:, None] & (square < squares)[None, :]
    corner = square // (width // FACTOR) * FACTOR * width + square % (width // FACTOR) * FACTOR
    pixel = tl.arange(0, FACTOR * FACTOR)
    offset = corner[:, None] + (pixel // FACTOR * width + pixel % FACTOR)[None, :]
    first = plane.to(tl.int64) * squares
    pooled = first[:, None] + square[None, :]
    full = (first * (FACTOR * FACTOR))[:, None, None] + offset[None, :, :]
    return plane, there, scale, pooled, inside, full, inside[:, :, None] & (pixel >= 0)[None, None, :]


@triton.jit
def _mean(a, squares, FACTOR: tl.constexpr):
    """Over every plane of (planes, squares, pixels)."""
    return (tl.sum(tl.sum(a, 2), 1) / (squares * FACTOR * FACTOR))[:, None, None]


@triton.jit
def _per_plane(place, plane, there):
    return tl.load(place + plane, mask=there, other=0.0).to(tl.float32)[:, None, None]


@triton.jit
def _forward(
    x_at,
    weight_at,
    bias_at,
    y_at,
    mean_at,
    rstd_at,
    eps,
    planes,
    each,
    channels,
    width,
    squares,
    PLANES: tl.constexpr,
    SQUARES: tl.constexpr,
    FACTOR: tl.constexpr,
):
    plane, there, scale, pooled, inside, full, valid = _places(
        planes, each, channels, width, squares, PLANES, SQUARES, FACTOR
    )
    x = tl.load(x_at + full, mask=valid, other=0.0).to(tl.float32)
    mean = _mean(x, squares, FACTOR)
    centred = tl.where(valid, x - mean, 0.0)
    rstd = 1 / tl.sqrt(_mean(centred * centred, squares, FACTOR) + eps)
    y = centred * rstd * _per_plane(weight_at, scale, there) + _per_plane(bias_at, scale, there)
    y = tl.sum(tl.maximum(y, 0.0), 2) / (FACTOR * FACTOR)
    tl.store(y_at + pooled, y.to(y_at.dtype.element_ty), mask=inside)
    column = tl.arange(0, PLANES)
    tl.store(mean_at + plane, tl.reshape(mean, (PLANES,)), mask=there & (column >= 0))
    tl.store(rstd_at + plane, tl.reshape(rstd, (PLANES,)), mask=there & (column >= 0))


@triton.jit
def _backward(
    g_at,
    x_at,
    weight_at,
    bias_at,
    mean_at,
    rstd_at,
    of_x_at,
    of_weight_at,
    of_bias_at,
    planes,
    each,
    channels,
    width,
    squares,
    PLANES: tl.constexpr,
    SQUARES: tl.constexpr,
    FACTOR: tl.constexpr,
):
    plane, there, scale, pooled, inside, full, valid = _places(
        planes, each, channels, width, squares, PLANES, SQUARES, FACTOR
    )
    rstd, weight = _per_plane(rstd_at, plane, there), _per_plane(weight_at, scale, there)
    x = tl.load(x_at + full, mask=valid, other=0.0).to(tl.float32)
    h = (x - _per_plane(mean_at, plane, there)) * rstd
    g = tl.load(g_at + pooled, mask=inside, other=0.0).to(tl.float32)[:, :, None]
    passes = valid & (h * weight + _per_plane(bias_at, scale, there) > 0)
    u = tl.where(passes, g / (FACTOR * FACTOR), 0.0)
    u_mean, uh_mean = _mean(u, squares, FACTOR), _mean(u * h, squares, FACTOR)
    grad = weight * rstd * (u - u_mean - h * uh_mean)
    tl.store(of_x_at + full, grad.to(of_x_at.dtype.element_ty), mask=valid)
    count = squares * FACTOR * FACTOR
    tl.store(of_weight_at + plane, tl.reshape(uh_mean, (PLANES,)) * count, mask=there)
    tl.store(of_bias_at + plane, tl.reshape(u_mean, (PLANES,)) * count, mask=there)


@triton.jit
def _twice(
    v_at,
    g_at,
    x_at,
    weight_at,
    bias_at,
    mean_at,
    rstd_at,
    of_g_at,
    of_x_at,
    planes,
    each,
    channels,
    width,
    squares,
    PLANES: tl.constexpr,
    SQUARES: tl.constexpr,
    FACTOR: tl.constexpr,
):
    plane, there, scale, pooled, inside, full, valid = _places(
        planes, each, channels, width, squares, PLANES, SQUARES, FACTOR
    )
    s, weight = _per_plane(rstd_at, plane, there), _per_plane(weight_at, scale, there)
    x = tl.load(x_at + full, mask=valid, other=0.0).to(tl.float32)
    h = tl.where(valid, (x - _per_plane(mean_at, plane, there)) * s, 0.0)
    g = tl.load(g_at + pooled, mask=inside, other=0.0).to(tl.float32)[:, :, None]
    v = tl.load(v_at + full, mask=valid, other=0.0).to(tl.float32)
    passes = valid & (h * weight + _per_plane(bias_at, scale, there) > 0)
    u = tl.where(passes, g / (FACTOR * FACTOR), 0.0) * weight
    u_mean, v_mean = _mean(u, squares, FACTOR), _mean(v, squares, FACTOR)
    k, m = _mean(v * h, squares, FACTOR), _mean(u * h, squares, FACTOR)
    both = _mean(u * v, squares, FACTOR) - u_mean * v_mean
    of_g = tl.where(passes, weight * s * (v - v_mean - k * h), 0.0)
    of_g = tl.sum(of_g, 2) / (FACTOR * FACTOR)
    tl.store(of_g_at + pooled, of_g.to(of_g_at.dtype.element_ty), mask=inside)
    of_x = -s * s * (m * (v - v_mean) + k * (u - u_mean) + (both - 3 * k * m) * h)
    tl.store(of_x_at + full, of_x.to(of_x_at.dtype.element_ty), mask=valid)
