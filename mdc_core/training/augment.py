"""Augmentation in two steps: draw parameters once, then apply them to any number of batches.

Images are normalised, so zero is the mean colour. Siamese augmentation (DSA, arXiv 2102.08259) applies one row of
parameters to a whole batch, and the same row to the real and the synthetic batch. Otherwise every image has its row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mdc_core.config.settings import AugmentOp
from mdc_core.data.normalisation import Normalisation

_GEOMETRIC: tuple[AugmentOp, ...] = ("crop", "scale", "rotate")
_LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""
_JITTER = 0.4
"""Largest strength of brightness, contrast and saturation."""
_CROP_TRIES = 10
"""Tries per crop; each takes two uniform numbers."""


@dataclass(frozen=True)
class AugmentParams:
    """Drawn parameters, each (R, …): R is 1 for siamese use, else the batch size. None: the op is not applied.

    Ops are applied in the order of the fields. Which fields are None depends on the list of ops only, so one recorded
    CUDA graph serves every draw.
    """

    resized_crop: Tensor | None = None
    """(R, 4) int64: first row, first column, rows and columns of the crop that is enlarged to the whole image."""
    flip: Tensor | None = None
    """(R,) bool: mirror left to right."""
    color: Tensor | None = None
    """(R, 3): brightness offset, saturation factor, contrast factor."""
    jitter: Tensor | None = None
    """(R, ch, 2·ch + 1): every output channel as a linear map of the pixel's channels, the image's means, and 1."""
    lighting: Tensor | None = None
    """(R, ch): offset per channel."""
    shift: Tensor | None = None
    """(R, 2) int64: pixels down and right; filled with zero."""
    affine: Tensor | None = None
    """(R, 2, 3): matrix of a scaling or a rotation, from output to input coordinates."""
    cutout: Tensor | None = None
    """(R, 2) int64: first row and column of the square that is set to zero; may lie partly outside the image."""

    def map(self, change: Callable[[Tensor], Tensor]) -> AugmentParams:
        """The same parameters with `change` applied to each that is not None."""
        return AugmentParams(
            **{name: None if value is None else change(value) for name, value in vars(self).items()}
        )

    def rows(self, index: Tensor) -> AugmentParams:
        """Rows `index` (B,), int64, of the parameters, in that order."""
        return self.map(lambda value: value[index])


def draw(
    ops: Sequence[AugmentOp],
    rows: int,
    *,
    normalisation: Normalisation,
    image_size: int,
    generator: torch.Generator,
    batches: int = 1,
) -> AugmentParams:
    """Parameters of `ops` on the CPU, R = `batches` · `rows`, batch after batch.

    If `ops` lists several of crop, scale and rotate, one is picked uniformly for all rows of a batch, and the others
    stay neutral (identity).

    Args:
        rows: images per batch; 1 for siamese augmentation, where a batch shares its parameters.
    """
    rows *= batches

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    resized_crop = flip = color = jitter = lighting = shift = affine = cutout = None
    if "resized_crop" in ops:
        resized_crop = _resized_crop(uniform(rows, 2 * _CROP_TRIES + 2), image_size)
    if "flip" in ops:
        flip = uniform(rows) < 0.5
    if "color" in ops:
        color = uniform(rows, 3) * torch.tensor([1.0, 2.0, 1.0]) + torch.tensor([-0.5, 0.0, 0.5])
    if "jitter" in ops:
        strengths, order = _JITTER * (2 * uniform(rows, 3) - 1), uniform(rows, 3).argsort(1)
        jitter = _jitter(strengths.double(), order, normalisation).float()
    if "lighting" in ops:
        lighting = _lighting(torch.randn(rows, 3, generator=generator), normalisation)
    if geometric := [op for op in _GEOMETRIC if op in ops]:
        picked = torch.randint(len(geometric), (batches,), generator=generator)
        shift, affine = _geometry(geometric, picked.repeat_interleave(rows // batches), image_size, generator)
    if "cutout" in ops:
        cutout = _cutout(rows, image_size, generator)
    return AugmentParams(resized_crop, flip, color, jitter, lighting, shift, affine, cutout)


def apply(params: AugmentParams, images: Tensor) -> Tensor:
    """Augmented images (B, ch, H, H); differentiable. Parameters have R = 1 or B, on the images' device."""
    if params.resized_crop is not None:
        images = _resized(images, params.resized_crop)
    if params.flip is not None:
        images = torch.where(params.flip.view(-1, 1, 1, 1), images.flip(3), images)
    if params.color is not None:
        images = _recolour(images, params.color.to(images))
    if params.jitter is not None:
        images = _jittered(images, params.jitter.to(images))
    if params.lighting is not None:
        images = images + params.lighting.to(images)[:, :, None, None]
    if params.shift is not None:
        images = _shifted(images, params.shift)
    if params.affine is not None:
        grid = _affine_grid(params.affine.to(images), images.shape[-1]).expand(len(images), -1, -1, -1)
        images = F.grid_sample(images, grid, align_corners=True)
    if params.cutout is not None:
        images = images * _cutout_mask(params.cutout, images.shape[-1]).to(images)
    return images


def cutmix_boxes(count: int, image_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """CutMix boxes (count, 4) (top, bottom, left, right), and λ (count,): the share of the image outside each box.

    The ratio is Beta(1, 1), the centre uniform, and the box clipped at the border (arXiv 1905.04899).
    """
    ratio, *centre = torch.rand(3, count, generator=generator, dtype=torch.float64)
    half = (image_size * (1 - ratio).sqrt()).long() // 2
    sides = []
    for relative in centre:
        middle = (relative * image_size).long()
        sides += [(middle - half).clamp(min=0), (middle + half).clamp(max=image_size)]
    boxes = torch.stack(sides, dim=1)
    cutmix_lambda = 1 - (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / image_size**2
    return boxes, cutmix_lambda


def mix(images: Tensor, partner: Tensor, boxes: Tensor) -> Tensor:
    """Images (B, ch, H, H) whose box (B, 4) is replaced by that of image `partner` (B,), int64."""
    line = torch.arange(images.shape[-1], device=images.device)
    top, bottom, left, right = boxes.T[:, :, None]  # each (B, 1)
    rows, columns = (line >= top) & (line < bottom), (line >= left) & (line < right)
    inside = rows[:, None, :, None] & columns[:, None, None, :]  # (B, 1, H, H)
    return torch.where(inside, images[partner], images)


def _recolour(images: Tensor, color: Tensor) -> Tensor:
    """Change brightness, then saturation, then contrast, by color (R, 3)."""
    brightness, saturation, contrast = color.T[:, :, None, None, None]
    images = images + brightness
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * saturation + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    recoloured: Tensor = (images - mean) * contrast + mean
    return recoloured


def _geometry(
    ops: Sequence[AugmentOp], picked: Tensor, image_size: int, generator: torch.Generator
) -> tuple[Tensor | None, Tensor | None]:
    """Shifts (R, 2) and matrices (R, 2, 3): op `picked` (R,) of `ops` for each row, identity for the other ops."""
    shift = affine = None
    for number, op in enumerate(ops):
        if op == "crop":
            most = (image_size + 4) // 8  # an eighth of the side, halves rounded up
            shift = torch.randint(-most, most + 1, (len(picked), 2), generator=generator)
            shift *= (picked == number)[:, None]
            continue
        drawn = (
            _scaling(torch.rand(len(picked), 2, generator=generator))
            if op == "scale"
            else _rotation(torch.rand(len(picked), generator=generator))
        )
        affine = torch.eye(2, 3).expand_as(drawn) if affine is None else affine
        affine = torch.where((picked == number)[:, None, None], drawn, affine)
    return shift, affine


def _affine_grid(matrices: Tensor, side: int) -> Tensor:
    """Sampling grid (R, H, H, 2) in [-1, 1] of matrices (R, 2, 3).

    `F.affine_grid` computes a matrix product, which TF32 rounds by a fraction of a pixel.
    """
    line = torch.linspace(-1, 1, side, dtype=matrices.dtype, device=matrices.device)
    x, y, offset = matrices[:, None, None].unbind(4)  # each (R, 1, 1, 2)
    grid: Tensor = x * line[:, None] + y * line[:, None, None] + offset
    return grid


def _shifted(images: Tensor, shift: Tensor) -> Tensor:
    """Move each image by whole pixels: shift (R, 2), down and right."""
    batch, channels, side, _ = images.shape
    line = torch.arange(side, device=images.device)
    for axis in (2, 3):
        source = (line - shift[:, axis - 2, None]).expand(batch, -1)  # (B, H): where each pixel comes from
        inside = (source >= 0) & (source < side)
        shape = (batch, 1, side, 1) if axis == 2 else (batch, 1, 1, side)
        index = source.clamp(0, side - 1).view(shape).expand(-1, channels, side, side)
        images = images.gather(axis, index) * inside.view(shape)
    return images


def _cutout(rows: int, image_size: int, generator: torch.Generator) -> Tensor:
    """Corners (R, 2) of squares with a uniform centre in the image; even squares may be centred on its far border."""
    size = _cutout_side(image_size)
    return torch.randint(image_size + 1 - size % 2, (rows, 2), generator=generator) - size // 2


def _cutout_side(image_size: int) -> int:
    """Half of the image's side, rounded up."""
    return (image_size + 1) // 2


def _cutout_mask(corner: Tensor, side: int) -> Tensor:
    """Mask (R, 1, H, H), False inside the square of side H / 2 at `corner` (R, 2)."""
    line, size = torch.arange(side, device=corner.device), _cutout_side(side)
    rows = (line >= corner[:, :1]) & (line < corner[:, :1] + size)
    columns = (line >= corner[:, 1:]) & (line < corner[:, 1:] + size)
    return ~(rows[:, None, :, None] & columns[:, None, None, :])


def _matrices(entries: Sequence[Sequence[Tensor]]) -> Tensor:
    """Matrices (R, 2, 3) from rows of (R,) tensors."""
    return torch.stack([torch.stack(list(row), dim=1) for row in entries], dim=1)


def _scaling(u: Tensor) -> Tensor:
    """Matrices (R, 2, 3) that scale by factors in [1/1.2, 1.2] per axis, from uniform u (R, 2)."""
    low = 1 / 1.2
    factors = low + u * (1.2 - low)
    zero = torch.zeros(len(u))
    return _matrices([[factors[:, 0], zero, zero], [zero, factors[:, 1], zero]])


def _rotation(u: Tensor) -> Tensor:
    """Matrices (R, 2, 3) that rotate by angles in ±15°, from uniform u (R,)."""
    angle = (u - 0.5) * 2 * math.radians(15)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(len(u))
    return _matrices([[cos, sin, zero], [-sin, cos, zero]])


def _resized_crop(u: Tensor, side: int) -> Tensor:
    """Crops (R, 4) with 0.5 to 1 of the area and aspect ratio 3/4 to 4/3, from uniform u (R, 22).

    The first of ten tries that fits into the image counts, else the whole image (Inception's crop, arXiv 1409.4842).
    """
    tries, position = u[:, :-2].double().view(len(u), _CROP_TRIES, 2), u[:, -2:].double()
    area, aspect = side**2 * (1 + tries[..., 0]) / 2, (4 / 3) ** (2 * tries[..., 1] - 1)
    sides = torch.stack((area / aspect, area * aspect), dim=2).sqrt().round()  # (R, tries, 2): rows, columns
    fits = (sides <= side).all(2)
    first = sides[torch.arange(len(u)), fits.byte().argmax(1)]
    chosen = torch.where(fits.any(1, keepdim=True), first, float(side))
    corner = (position * (side - chosen + 1)).floor()
    return torch.cat((corner, chosen), dim=1).long()


def _resized(images: Tensor, part: Tensor) -> Tensor:
    """Enlarge the crop (R, 4) of every image to the whole image, bilinearly, without looking beyond the crop."""
    side = images.shape[-1]
    first, extent = part[:, :, None].to(images).split(2, dim=1)  # (R, 2, 1): of rows and of columns
    line = torch.arange(side, dtype=images.dtype, device=images.device)
    source = ((line + 0.5) * extent / side - 0.5).clamp(min=0)
    source = torch.minimum(source, extent - 1) + first
    # (B, H) each: the rows and columns to sample, in [-1, 1]
    rows, columns = (2 * source / (side - 1) - 1).expand(len(images), -1, -1).unbind(1)
    grid = torch.stack((columns[:, None].expand(-1, side, -1), rows[:, :, None].expand(-1, -1, side)), dim=3)
    enlarged: Tensor = F.grid_sample(images, grid, align_corners=True)
    return enlarged


def _jitter(strengths: Tensor, order: Tensor, normalisation: Normalisation) -> Tensor:
    """Brightness, contrast and saturation in any order, as one linear map (R, ch, 2·ch + 1) of normalised images.

    Each moves a pixel, before normalisation, some of the way to a target: brightness to black, contrast to the image's
    mean grey, saturation to the pixel's own grey. All three are linear in the pixel and the image's mean colour, so
    their composition is too.

    Args:
        strengths: (R, 3), how far brightness, contrast and saturation move; negative: away from the target.
        order: (R, 3), int64, which of them (0, 1, 2) comes first, second and third.
    """
    channels = normalisation.channels
    mean, std = (torch.tensor(v, dtype=strengths.dtype) for v in (normalisation.mean, normalisation.std))
    weights = _LUMINANCE if channels == 3 else (1 / channels,) * channels
    grey = torch.tensor(weights, dtype=strengths.dtype).expand(channels, channels)
    unit = torch.eye(channels, dtype=strengths.dtype)
    own, average = (
        unit,
        torch.zeros_like(unit),
    )  # (R, ch, ch) each: coefficients of the pixel and of the image's mean
    for kind in order.T:
        part = strengths.gather(1, kind[:, None])[:, :, None]
        contrast, saturation = (part * (kind == number)[:, None, None] for number in (1, 2))
        own, average = (
            (1 - part) * own + saturation * grey @ own,
            (1 - part) * average + saturation * grey @ average + contrast * grey @ (own + average),
        )
    offset = (own + average - unit) @ mean[:, None]
    # From normalised pixels to pixels, then back.
    return torch.cat((own * std, average * std, offset), dim=2) / std[:, None]


def _jittered(images: Tensor, maps: Tensor) -> Tensor:
    """Images (B, ch, H, H) under the linear maps of `_jitter` (R, ch, 2·ch + 1)."""
    channels = images.shape[1]
    own, average, offset = maps[..., None, None].split([channels, channels, 1], dim=2)
    mean = images.mean((2, 3), keepdim=True)
    jittered: Tensor = (average * mean[:, None]).sum(2) + offset.squeeze(2)  # (B, ch, 1, 1)
    for channel in range(
        channels
    ):  # not a matrix product, which a GPU may round (`mdc_core.compute.precision`)
        jittered = torch.addcmul(jittered, own[:, :, channel], images[:, channel, None])
    return jittered


def _lighting(normal: Tensor, normalisation: Normalisation) -> Tensor:
    """Offsets (R, ch) along the principal colour axes of natural images, strength 0.1; zero unless ch is 3.

    Method: Krizhevsky et al. 2012, section 4.1, with eigenvalues and axes of ImageNet's RGB covariance.
    """
    if normalisation.channels != 3:
        return torch.zeros(len(normal), normalisation.channels)
    values = torch.tensor([0.2175, 0.0188, 0.0045])
    axes = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    return (0.1 * normal * values) @ axes.T / torch.tensor(normalisation.std)
