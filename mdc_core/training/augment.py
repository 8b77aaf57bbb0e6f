"""Augmentation in two steps: draw the parameters once, then apply them to as many batches as need them.

Images are normalised, so zero is the mean colour. Siamese augmentation (DSA, arXiv 2102.08259) is one row of
parameters applied to a whole batch, and to the real and the synthetic batch alike; otherwise one row per image.
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
"""Of red, green and blue in a grey (ITU-R BT.601)."""
_JITTER = 0.4
_CROP_TRIES = 10


@dataclass(frozen=True)
class AugmentParams:
    """Drawn parameters, each (R, …): R is 1 for siamese use, else the batch size. None: this op is not applied.

    They are applied in the order in which they are named here.
    Which of them are None follows from the list of ops alone, so that one recording serves every draw.
    """

    resized_crop: Tensor | None = None
    """(R, 4) int64: first row, first column, rows and columns of the part that is enlarged to the whole image."""
    flip: Tensor | None = None
    """(R,) bool: mirror left and right."""
    color: Tensor | None = None
    """(R, 3): brightness offset, saturation factor, contrast factor."""
    jitter: Tensor | None = None
    """(R, ch, 2·ch + 1): every channel as a sum of the pixel's channels, of the image's mean ones, and of 1."""
    lighting: Tensor | None = None
    """(R, ch): offset per channel."""
    shift: Tensor | None = None
    """(R, 2) int64: pixels down and right, zero filled."""
    affine: Tensor | None = None
    """(R, 2, 3): sampling grid of a scaling or a rotation."""
    cutout: Tensor | None = None
    """(R, 2) int64: first row and column of the square that is filled with zero; may lie partly outside."""

    def map(self, change: Callable[[Tensor], Tensor]) -> AugmentParams:
        """Every parameter changed: another device, another shape, other rows."""
        return AugmentParams(
            **{name: None if value is None else change(value) for name, value in vars(self).items()}
        )

    def rows(self, index: Tensor) -> AugmentParams:
        """The parameters of rows `index` (B,), int64, in that order."""
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
    """Parameters of `ops` for `rows` images in each of `batches` batches, one after the other, on the CPU.

    Of the listed crop, scale and rotate one is picked, uniformly, for all rows of a batch; the others are neutral.
    A batch that is augmented as one, as siamese batches are, takes one row.
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
    """Images (B, ch, H, H) augmented; differentiable. R of the parameters is 1 or B; they are on the images' device."""
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
    """CutMix boxes (count, 4): top, bottom, left, right; and the share of the image that each leaves, (count,).

    The ratio is Beta(1, 1), the centre uniform, the box clipped at the border (arXiv 1905.04899).
    """
    ratio, *centre = torch.rand(3, count, generator=generator, dtype=torch.float64)
    half = (image_size * (1 - ratio).sqrt()).long() // 2
    sides = []
    for at in centre:
        middle = (at * image_size).long()
        sides += [(middle - half).clamp(min=0), (middle + half).clamp(max=image_size)]
    boxes = torch.stack(sides, dim=1)
    kept = 1 - (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / image_size**2
    return boxes, kept


def mix(images: Tensor, partner: Tensor, boxes: Tensor) -> Tensor:
    """Images (B, ch, H, H) with each box (B, 4) taken from the image at `partner` (B,)."""
    line = torch.arange(images.shape[-1], device=images.device)
    top, bottom, left, right = boxes.T[:, :, None]  # each (B, 1)
    rows, columns = (line >= top) & (line < bottom), (line >= left) & (line < right)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, images[partner], images)


def _recolour(images: Tensor, color: Tensor) -> Tensor:
    """Brightness, then saturation, then contrast."""
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
    """Shifts (R, 2) and grids (R, 2, 3) of the op of `ops` that is `picked` (R,) for each row."""
    shift = affine = None
    for number, op in enumerate(ops):
        if op == "crop":
            reach = (image_size + 4) // 8  # an eighth, halves rounded up
            shift = torch.randint(-reach, reach + 1, (len(picked), 2), generator=generator)
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
    """Where each pixel comes from, (R, H, H, 2) in [-1, 1], by matrices (R, 2, 3).

    Torch's own computes a matrix product, which TF32 rounds by a part of a pixel.
    """
    line = torch.linspace(-1, 1, side, dtype=matrices.dtype, device=matrices.device)
    x, y, offset = matrices[:, None, None].unbind(4)  # each (R, 1, 1, 2)
    grid: Tensor = x * line[:, None] + y * line[:, None, None] + offset
    return grid


def _shifted(images: Tensor, shift: Tensor) -> Tensor:
    """Move each image by whole pixels."""
    batch, channels, side, _ = images.shape
    line = torch.arange(side, device=images.device)
    for axis in (2, 3):
        # (B, H): the pixel that moves to each place
        source = (line - shift[:, axis - 2, None]).expand(batch, -1)
        inside = (source >= 0) & (source < side)
        shape = (batch, 1, side, 1) if axis == 2 else (batch, 1, 1, side)
        index = source.clamp(0, side - 1).view(shape).expand(-1, channels, side, side)
        images = images.gather(axis, index) * inside.view(shape)
    return images


def _cutout(rows: int, image_size: int, generator: torch.Generator) -> Tensor:
    """Corners (R, 2) of squares whose centre is anywhere in the image, and of even ones, on its far border too."""
    size = _cutout_side(image_size)
    return torch.randint(image_size + 1 - size % 2, (rows, 2), generator=generator) - size // 2


def _cutout_side(image_size: int) -> int:
    """Half of the image's side, halves rounded up."""
    return (image_size + 1) // 2


def _cutout_mask(corner: Tensor, side: int) -> Tensor:
    """(R, 1, H, H): False inside the square of side H / 2."""
    line, size = torch.arange(side, device=corner.device), _cutout_side(side)
    rows = (line >= corner[:, :1]) & (line < corner[:, :1] + size)
    columns = (line >= corner[:, 1:]) & (line < corner[:, 1:] + size)
    return ~(rows[:, None, :, None] & columns[:, None, None, :])


def _matrices(entries: Sequence[Sequence[Tensor]]) -> Tensor:
    """Rows of (R,) tensors as matrices (R, 2, 3)."""
    return torch.stack([torch.stack(list(row), dim=1) for row in entries], dim=1)


def _scaling(u: Tensor) -> Tensor:
    """Factors per axis in [1/1.2, 1.2]."""
    low = 1 / 1.2
    factors = low + u * (1.2 - low)
    zero = torch.zeros(len(u))
    return _matrices([[factors[:, 0], zero, zero], [zero, factors[:, 1], zero]])


def _rotation(u: Tensor) -> Tensor:
    """Angles in ±15°."""
    angle = (u - 0.5) * 2 * math.radians(15)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(len(u))
    return _matrices([[cos, sin, zero], [-sin, cos, zero]])


def _resized_crop(u: Tensor, side: int) -> Tensor:
    """Parts (R, 4) of 0.5 to 1 of the area and 3/4 to 4/3 as wide as high, by uniform numbers (R, 22).

    The first of ten tries that lies within the image counts, or the whole image (Inception's crop, arXiv 1409.4842).
    """
    tries, place = u[:, :-2].double().view(len(u), _CROP_TRIES, 2), u[:, -2:].double()
    area, aspect = side**2 * (1 + tries[..., 0]) / 2, (4 / 3) ** (2 * tries[..., 1] - 1)
    sides = torch.stack((area / aspect, area * aspect), dim=2).sqrt().round()  # (R, tries, 2): rows, columns
    fits = (sides <= side).all(2)
    first = sides[torch.arange(len(u)), fits.byte().argmax(1)]
    chosen = torch.where(fits.any(1, keepdim=True), first, float(side))
    corner = (place * (side - chosen + 1)).floor()
    return torch.cat((corner, chosen), dim=1).long()


def _resized(images: Tensor, part: Tensor) -> Tensor:
    """Enlarge a part (R, 4) of every image to the whole, bilinearly, as if nothing lay around it."""
    side = images.shape[-1]
    first, extent = part[:, :, None].to(images).split(2, dim=1)  # (R, 2, 1): of rows and of columns
    line = torch.arange(side, dtype=images.dtype, device=images.device)
    seen = ((line + 0.5) * extent / side - 0.5).clamp(min=0)
    seen = torch.minimum(seen, extent - 1) + first
    # (B, H) each: where a row and a column of the outcome lie in the image, which reaches from -1 to 1
    rows, columns = (2 * seen / (side - 1) - 1).expand(len(images), -1, -1).unbind(1)
    grid = torch.stack((columns[:, None].expand(-1, side, -1), rows[:, :, None].expand(-1, -1, side)), dim=3)
    enlarged: Tensor = F.grid_sample(images, grid, align_corners=True)
    return enlarged


def _jitter(strengths: Tensor, order: Tensor, normalisation: Normalisation) -> Tensor:
    """Brightness, contrast and saturation, in any order, as one linear map (R, ch, 2·ch + 1) of normalised images.

    Each goes a part of the way from the pixel to something else: brightness to black, contrast to the mean grey of
    the image, saturation to the grey of the pixel. Pixels are meant that are not normalised.

    Args:
        strengths: (R, 3), the parts for brightness, contrast and saturation; a negative one goes the other way.
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
    )  # what the pixel and the image's mean have to do with the outcome
    for kind in order.T:
        part = strengths.gather(1, kind[:, None])[:, :, None]
        contrast, saturation = (part * (kind == number)[:, None, None] for number in (1, 2))
        own, average = (
            (1 - part) * own + saturation * grey @ own,
            (1 - part) * average + saturation * grey @ average + contrast * grey @ (own + average),
        )
    offset = (own + average - unit) @ mean[:, None]
    # From normalised pixels to pixels, and back.
    return torch.cat((own * std, average * std, offset), dim=2) / std[:, None]


def _jittered(images: Tensor, maps: Tensor) -> Tensor:
    """The maps of `_jitter` applied."""
    channels = images.shape[1]
    own, average, offset = maps[..., None, None].split([channels, channels, 1], dim=2)
    mean = images.mean((2, 3), keepdim=True)
    found: Tensor = (average * mean[:, None]).sum(2) + offset.squeeze(2)  # (B, ch, 1, 1)
    for channel in range(channels):  # no matrix product, which a GPU may round (`mdc_core.compute.precision`)
        found = torch.addcmul(found, own[:, :, channel], images[:, channel, None])
    return found


def _lighting(normal: Tensor, normalisation: Normalisation) -> Tensor:
    """Offsets (R, ch) along the principal colour axes of natural images, strength 0.1; none without three channels.

    The method is Krizhevsky et al. 2012, section 4.1; eigenvalues and axes are those of ImageNet's RGB covariance.
    """
    if normalisation.channels != 3:
        return torch.zeros(len(normal), normalisation.channels)
    values = torch.tensor([0.2175, 0.0188, 0.0045])
    axes = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    return (0.1 * normal * values) @ axes.T / torch.tensor(normalisation.std)
