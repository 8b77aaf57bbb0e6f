"""Instance norm, ReLU and average pooling fused into one Triton kernel per direction.

Between two convolutions torch's own kernels read and write every activation a dozen times, which takes most of a GPU's
time (docs/results/performance.md). Here a plane (one channel of one image) stays on the chip: one read, one write. For

    y = P(r γ h + r β),   h = s (x - mean x),   s = 1 / √(var x + ε),   r = 1 where γ h + β > 0, else 0,

with P the mean over squares of p² pixels and P* its adjoint, u = r P* g for g = dL/dy, and all means over a plane:

    dL/dx = γ s (u - mean u - h mean(u h)),   dL/dγ = sum(u h),   dL/dβ = sum u,

and the second derivative, for v = the gradient of dL/dx, k = mean(v h) and m = γ mean(u h):

    dL/dg = P(r γ s (v - mean v - k h)),
    dL/dx = -s² (m (v - mean v) + k γ (u - mean u) + (γ mean(u v) - γ mean u mean v - 3 k m) h).

Imported on a GPU only (`networks.layers`). In tests, Triton's interpreter runs the same code on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAM = 2_048
"""Pixels per program, which takes as many planes as fit."""
_PER_THREAD = 16
"""Pixels per thread."""


def norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, factor: int, eps: float) -> Tensor:
    """y (B, ch, H / p, W / p) from x (B, ch, H, W). Sums are float32, whatever the type of x.

    Differentiable twice, the second time with respect to x only.

    Args:
        weight: γ (ch,), or (S, ch) for S equal parts of the batch.
        bias: β, like γ.
        factor: p, a power of 2 that divides H and W.
        eps: ε.
    """
    out: Tensor = _NormReluPool.apply(x, weight, bias, factor, eps)
    return out


class _NormReluPool(torch.autograd.Function):
    """y; saves x, γ, β, and mean and 1/std of every plane."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, factor: int, eps: float) -> Tensor:
        x, weight, bias = (t.contiguous() for t in (x, weight, bias))
        y = x.new_empty(*x.shape[:2], x.shape[2] // factor, x.shape[3] // factor)
        mean, rstd = (torch.empty(x.shape[:2], device=x.device) for _ in range(2))
        _launch(_forward, x, weight, factor, x, weight, bias, y, mean, rstd, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.factor = factor
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        affine = any(ctx.needs_input_grad[1:3])
        derivatives = _Backward.apply(grads[0], *ctx.saved_tensors, ctx.factor, affine)
        return (*derivatives, None, None)


class _Backward(torch.autograd.Function):
    """The gradients with respect to x, γ and β."""

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
        g, grad_x = g.contiguous(), torch.empty_like(x)
        grad_weight, grad_bias = (torch.empty_like(mean) for _ in range(2))  # image by image
        _launch(_backward, x, weight, factor, g, x, weight, bias, mean, rstd, grad_x, grad_weight, grad_bias)
        ctx.save_for_backward(g, x, weight, bias, mean, rstd)
        ctx.factor = factor
        ctx.set_materialize_grads(False)
        if not affine:
            return grad_x, None, None
        channels = weight.shape[-1]
        parts = (
            each.view(-1, x.shape[0] * channels // weight.numel(), channels)
            for each in (grad_weight, grad_bias)
        )
        return grad_x, *(part.sum(1).view(weight.shape) for part in parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        v = grads[0]
        if any(grad is not None for grad in grads[1:]):
            raise NotImplementedError("instance norm has second derivatives for its input only")
        if v is None:
            return (None,) * 8
        g, x, weight, bias, mean, rstd = ctx.saved_tensors
        grad_g, grad_x = torch.empty_like(g), torch.empty_like(x)
        _launch(_twice, x, weight, ctx.factor, v.contiguous(), g, x, weight, bias, mean, rstd, grad_g, grad_x)
        return grad_g, grad_x, *(None,) * 6


def _launch(kernel: Any, x: Tensor, weight: Tensor, factor: int, *args: Tensor | float) -> None:
    """Launch a kernel over all planes of x."""
    batch, channels, height, width = x.shape
    squares = (height // factor) * (width // factor)
    plane_pixels = triton.next_power_of_2(squares) * factor**2
    planes, per_program = batch * channels, max(1, _PROGRAM // plane_pixels)
    with torch.cuda.device_of(x):  # Triton launches on the current GPU, wherever the tensors are
        kernel[(triton.cdiv(planes, per_program),)](
            *args,
            planes,
            batch * weight.shape[-1] // weight.numel(),  # images of a part
            channels,
            width,
            squares,
            PLANES=per_program,
            SQUARES=triton.next_power_of_2(squares),
            FACTOR=factor,
            num_warps=min(32, max(1, per_program * plane_pixels // (32 * _PER_THREAD))),
        )


@triton.jit
def _indices(
    planes,
    each,
    channels,
    width,
    squares,
    PLANES: tl.constexpr,
    SQUARES: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """This program's planes: their numbers, which of them exist, and the offsets and masks of their values."""
    plane = tl.program_id(0) * PLANES + tl.arange(0, PLANES)
    exists = plane < planes
    scale = plane // channels // each * channels + plane % channels  # row of γ and β
    square = tl.arange(0, SQUARES)
    inside = exists[:, None] & (square < squares)[None, :]
    corner = square // (width // FACTOR) * FACTOR * width + square % (width // FACTOR) * FACTOR
    pixel = tl.arange(0, FACTOR * FACTOR)
    offset = corner[:, None] + (pixel // FACTOR * width + pixel % FACTOR)[None, :]
    first = plane.to(tl.int64) * squares
    pooled = first[:, None] + square[None, :]  # (planes, squares)
    full = (first * (FACTOR * FACTOR))[:, None, None] + offset[None, :, :]  # (planes, squares, pixels)
    return plane, exists, scale, pooled, inside, full, inside[:, :, None] & (pixel >= 0)[None, None, :]


@triton.jit
def _mean(a, squares, FACTOR: tl.constexpr):
    """Mean (planes, 1, 1) over every plane of (planes, squares, pixels)."""
    return (tl.sum(tl.sum(a, 2), 1) / (squares * FACTOR * FACTOR))[:, None, None]


@triton.jit
def _per_plane(pointer, plane, exists):
    return tl.load(pointer + plane, mask=exists, other=0.0).to(tl.float32)[:, None, None]


@triton.jit
def _forward(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
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
    plane, exists, scale, pooled, inside, full, valid = _indices(
        planes, each, channels, width, squares, PLANES, SQUARES, FACTOR
    )
    x = tl.load(x_ptr + full, mask=valid, other=0.0).to(tl.float32)
    mean = _mean(x, squares, FACTOR)
    centred = tl.where(valid, x - mean, 0.0)
    rstd = 1 / tl.sqrt(_mean(centred * centred, squares, FACTOR) + eps)
    y = centred * rstd * _per_plane(weight_ptr, scale, exists) + _per_plane(bias_ptr, scale, exists)
    y = tl.sum(tl.maximum(y, 0.0), 2) / (FACTOR * FACTOR)
    tl.store(y_ptr + pooled, y.to(y_ptr.dtype.element_ty), mask=inside)
    column = tl.arange(0, PLANES)
    tl.store(mean_ptr + plane, tl.reshape(mean, (PLANES,)), mask=exists & (column >= 0))
    tl.store(rstd_ptr + plane, tl.reshape(rstd, (PLANES,)), mask=exists & (column >= 0))


@triton.jit
def _backward(
    g_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    grad_x_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    planes,
    each,
    channels,
    width,
    squares,
    PLANES: tl.constexpr,
    SQUARES: tl.constexpr,
    FACTOR: tl.constexpr,
):
    plane, exists, scale, pooled, inside, full, valid = _indices(
        planes, each, channels, width, squares, PLANES, SQUARES, FACTOR
    )
    rstd, weight = _per_plane(rstd_ptr, plane, exists), _per_plane(weight_ptr, scale, exists)
    x = tl.load(x_ptr + full, mask=valid, other=0.0).to(tl.float32)
    h = (x - _per_plane(mean_ptr, plane, exists)) * rstd
    g = tl.load(g_ptr + pooled, mask=inside, other=0.0).to(tl.float32)[:, :, None]
    passes = valid & (h * weight + _per_plane(bias_ptr, scale, exists) > 0)
    u = tl.where(passes, g / (FACTOR * FACTOR), 0.0)
    u_mean, uh_mean = _mean(u, squares, FACTOR), _mean(u * h, squares, FACTOR)
    grad_x = weight * rstd * (u - u_mean - h * uh_mean)
    tl.store(grad_x_ptr + full, grad_x.to(grad_x_ptr.dtype.element_ty), mask=valid)
    count = squares * FACTOR * FACTOR
    tl.store(grad_weight_ptr + plane, tl.reshape(uh_mean, (PLANES,)) * count, mask=exists)
    tl.store(grad_bias_ptr + plane, tl.reshape(u_mean, (PLANES,)) * count, mask=exists)


@triton.jit
def _twice(
    v_ptr,
    g_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    grad_g_ptr,
    grad_x_ptr,
    planes,
    each,
    channels,
    width,
    squares,
    PLANES: tl.constexpr,
    SQUARES: tl.constexpr,
    FACTOR: tl.constexpr,
):
    plane, exists, scale, pooled, inside, full, valid = _indices(
        planes, each, channels, width, squares, PLANES, SQUARES, FACTOR
    )
    s, weight = _per_plane(rstd_ptr, plane, exists), _per_plane(weight_ptr, scale, exists)
    x = tl.load(x_ptr + full, mask=valid, other=0.0).to(tl.float32)
    h = tl.where(valid, (x - _per_plane(mean_ptr, plane, exists)) * s, 0.0)
    g = tl.load(g_ptr + pooled, mask=inside, other=0.0).to(tl.float32)[:, :, None]
    v = tl.load(v_ptr + full, mask=valid, other=0.0).to(tl.float32)
    passes = valid & (h * weight + _per_plane(bias_ptr, scale, exists) > 0)
    u = tl.where(passes, g / (FACTOR * FACTOR), 0.0) * weight
    u_mean, v_mean = _mean(u, squares, FACTOR), _mean(v, squares, FACTOR)
    k, m = _mean(v * h, squares, FACTOR), _mean(u * h, squares, FACTOR)
    both = _mean(u * v, squares, FACTOR) - u_mean * v_mean
    grad_g = tl.where(passes, weight * s * (v - v_mean - k * h), 0.0)
    grad_g = tl.sum(grad_g, 2) / (FACTOR * FACTOR)
    tl.store(grad_g_ptr + pooled, grad_g.to(grad_g_ptr.dtype.element_ty), mask=inside)
    grad_x = -s * s * (m * (v - v_mean) + k * (u - u_mean) + (both - 3 * k * m) * h)
    tl.store(grad_x_ptr + full, grad_x.to(grad_x_ptr.dtype.element_ty), mask=valid)
