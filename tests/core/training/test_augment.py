"""Augmentation: siamese rows are identical, per-image rows are not, and every op does what its name says."""

from __future__ import annotations

from collections import Counter
from itertools import permutations, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import RandomResizedCrop

from mdc_core.compute.streams import stream
from mdc_core.config.settings import AugmentOp
from mdc_core.data.normalisation import Normalisation
from mdc_core.training import augment

OPS: tuple[AugmentOp, ...] = (
    "flip", "color", "crop", "scale", "rotate", "cutout", "resized_crop", "jitter", "lighting",
)  # fmt: skip


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def drawn(
    *ops: AugmentOp, rows: int = 1, side: int = 8, seed: int = 0, batches: int = 1
) -> augment.AugmentParams:
    return augment.draw(
        ops, rows, batches=batches, normalisation=IMAGENET, image_size=side, generator=stream(seed, "test")
    )


def images(rows: int = 6, side: int = 8) -> torch.Tensor:
    return torch.randn(rows, 3, side, side, generator=stream(0, "images"), dtype=torch.float64)


@pytest.mark.parametrize("op", OPS)
def test_siamese_rows_are_identical_and_per_image_rows_are_not(op: AugmentOp) -> None:
    batch = images(1).expand(16, -1, -1, -1)
    siamese = augment.apply(drawn(op), batch)
    assert all(torch.equal(siamese[0], row) for row in siamese)
    own = augment.apply(drawn(op, rows=16), batch)
    assert len({tuple(row.flatten().tolist()) for row in own}) > 1


@pytest.mark.parametrize("op", OPS)
def test_one_row_equals_the_same_row_per_image(op: AugmentOp) -> None:
    """The siamese path and the per-image path compute the same thing."""
    params = drawn(op, seed=3)
    tripled = augment.AugmentParams(
        **{name: None if value is None else value.repeat(6, *[1] * (value.ndim - 1))
           for name, value in vars(params).items()}
    )  # fmt: skip
    torch.testing.assert_close(augment.apply(params, images()), augment.apply(tripled, images()))


@pytest.mark.parametrize("op", OPS)
def test_every_op_is_differentiable(op: AugmentOp) -> None:
    batch = images(2, 4).requires_grad_()
    params = drawn(op, rows=2, side=4)
    assert torch.autograd.gradcheck(lambda x: augment.apply(params, x), (batch,))


def test_crop_shifts_by_whole_pixels_and_fills_with_zero() -> None:
    batch = images()
    params = augment.AugmentParams(shift=torch.tensor([[2, -1]]))
    moved = augment.apply(params, batch)
    assert torch.equal(moved[:, :, 2:, :-1], batch[:, :, :-2, 1:])
    assert not moved[:, :, :2].any()
    assert not moved[:, :, :, -1].any()


@pytest.mark.parametrize(("side", "reach"), [(32, 4), (28, 4), (20, 3), (12, 2), (8, 1)])
def test_crop_reaches_an_eighth_of_the_side(side: int, reach: int) -> None:
    """Halves are rounded up: 3.5 to 4, 2.5 to 3."""
    shifts = drawn("crop", rows=2000, side=side).shift
    assert shifts is not None
    assert (int(shifts.min()), int(shifts.max())) == (-reach, reach)


@pytest.mark.parametrize(("side", "last"), [(32, 32), (28, 28), (10, 9), (9, 8), (7, 7)])
def test_cutout_is_centred_anywhere_in_the_image(side: int, last: int) -> None:
    """On the far border too where the square's side is even; as likely everywhere."""
    corners, size = drawn("cutout", rows=5000, side=side).cutout, int(side * 0.5 + 0.5)
    assert corners is not None
    counts = torch.bincount((corners + size // 2).flatten())
    assert len(counts) == last + 1
    expected = 10_000 / (last + 1)
    assert float((counts - expected).abs().max()) < 5 * expected**0.5


@pytest.mark.parametrize("side", [8, 9, 10])
def test_cutout_equals_the_literal_one(side: int) -> None:
    """The published one writes zeros pixel by pixel, and what lies outside onto the border."""
    size = int(side * 0.5 + 0.5)
    for centre in product(range(side + 1 - size % 2), repeat=2):
        expected = torch.ones(side, side)
        for i, j in product(range(size), repeat=2):
            row, column = (
                min(max(k + c - size // 2, 0), side - 1) for k, c in zip((i, j), centre, strict=True)
            )
            expected[row, column] = 0
        params = augment.AugmentParams(cutout=torch.tensor([centre]) - size // 2)
        assert torch.equal(augment.apply(params, torch.ones(1, 1, side, side))[0, 0], expected)


def test_cutout_zeroes_a_square_of_half_the_side() -> None:
    params = augment.AugmentParams(cutout=torch.tensor([[2, 2]]))
    cut = augment.apply(params, torch.ones(1, 3, 8, 8))
    assert int((cut == 0).sum()) == 3 * 4 * 4
    assert not cut[:, :, 2:6, 2:6].any()
    clipped = augment.apply(augment.AugmentParams(cutout=torch.tensor([[-2, 6]])), torch.ones(1, 3, 8, 8))
    assert int((clipped == 0).sum()) == 3 * 2 * 2


def test_colour_ops_by_hand() -> None:
    batch = images(1)
    brighter = augment.apply(augment.AugmentParams(color=torch.tensor([[0.25, 1.0, 1.0]])), batch)
    torch.testing.assert_close(brighter, batch + 0.25)
    grey = augment.apply(augment.AugmentParams(color=torch.tensor([[0.0, 0.0, 1.0]])), batch)
    torch.testing.assert_close(grey, batch.mean(1, keepdim=True).expand_as(batch))
    flat = augment.apply(augment.AugmentParams(color=torch.tensor([[0.0, 1.0, 0.0]])), batch)
    torch.testing.assert_close(flat, batch.mean().expand_as(batch))


def test_colour_ranges() -> None:
    color = drawn("color", rows=5000).color
    assert color is not None
    low, high = color.min(0).values, color.max(0).values
    torch.testing.assert_close(low, torch.tensor([-0.5, 0.0, 0.5]), atol=0.01, rtol=0)
    torch.testing.assert_close(high, torch.tensor([0.5, 2.0, 1.5]), atol=0.01, rtol=0)


def test_flip_mirrors_about_half() -> None:
    params = drawn("flip", rows=1000)
    assert params.flip is not None
    assert 400 < int(params.flip.sum()) < 600
    batch = images(1)
    flipped = augment.apply(augment.AugmentParams(flip=torch.tensor([True])), batch)
    assert torch.equal(flipped, batch.flip(3))


def test_one_geometric_op_is_picked_for_each_batch() -> None:
    """The others leave the images of that batch alone."""
    params = drawn("crop", "scale", "rotate", rows=3, side=32, batches=40)
    assert params.shift is not None
    assert params.affine is not None
    seen = set()
    for shift, affine in zip(params.shift.view(40, 3, 2), params.affine.view(40, 3, 2, 3), strict=True):
        turned, scaled = (
            bool(affine[:, 0, 1].any()),
            not torch.equal(affine, torch.eye(2, 3).expand(3, -1, -1)),
        )
        seen.add("rotate" if turned else "scale" if scaled else "crop")
        assert not (scaled and shift.any())
    assert seen == {"crop", "scale", "rotate"}


class NoProduct(TorchDispatchMode):
    """Refuses matrix products, whose factors a GPU may round."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in ("mm", "bmm", "addmm", "baddbmm"), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("op", OPS)
def test_nothing_is_rounded_on_the_way(op: AugmentOp) -> None:
    params = drawn(op, rows=6)
    with NoProduct():
        augment.apply(params, images())


def test_affine_grids_equal_torchs() -> None:
    matrices = torch.randn(3, 2, 3, dtype=torch.float64)
    expected = F.affine_grid(matrices, [3, 1, 5, 5], align_corners=True)
    torch.testing.assert_close(augment._affine_grid(matrices, 5), expected)


def test_identity_grid_leaves_images_alone() -> None:
    identity = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]])
    torch.testing.assert_close(augment.apply(augment.AugmentParams(affine=identity), images()), images())


def test_a_resized_crop_is_the_part_by_itself_enlarged() -> None:
    params = drawn("resized_crop", rows=20, side=16)
    assert params.resized_crop is not None
    batch = images(20, 16)
    actual = augment.apply(params, batch)
    for image, part, enlarged in zip(batch, params.resized_crop.tolist(), actual, strict=True):
        top, left, height, width = part
        inside = image[None, :, top : top + height, left : left + width]
        expected = F.interpolate(inside, size=(16, 16), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(enlarged, expected)


def test_resized_crops_are_spread_as_torchvisions() -> None:
    rows, side = 4000, 224
    parts = drawn("resized_crop", rows=rows, side=side).resized_crop
    assert parts is not None
    torch.manual_seed(0)
    blank = torch.empty(1, side, side)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(blank, [0.5, 1.0], [3 / 4, 4 / 3]) for _ in range(rows)]
    )
    corners, sides = parts.split(2, dim=1)
    assert bool(((corners >= 0) & (sides > 0) & (corners + sides <= side)).all())
    actual, expected = (measures(each / side) for each in (parts.double(), theirs.double()))
    for ours, other in zip(actual, expected, strict=True):
        spread = float((ours.var() + other.var()) / rows) ** 0.5
        assert abs(float(ours.mean() - other.mean())) < 4 * spread
        torch.testing.assert_close(ours.std(), other.std(), rtol=0.05, atol=0)
    area, aspect, *_ = actual
    assert float(area.mean()) == pytest.approx(0.70, abs=0.01)
    assert 0.74 < float(aspect.min()) < 0.77
    assert 1.30 < float(aspect.max()) < 1.35


def measures(parts: Tensor) -> tuple[Tensor, ...]:
    """Area, aspect, and where the part lies, 0..1, in the room that it has, by rows and by columns."""
    top, left, height, width = parts.T
    free = (1 - height > 0) & (1 - width > 0)
    return height * width, width / height, (top / (1 - height))[free], (left / (1 - width))[free]


def test_a_resized_crop_that_never_fits_is_the_whole_image() -> None:
    u = torch.full((3, 22), 1.0)  # the largest area at the largest aspect
    u[1, 6:8] = torch.tensor([0.0, 0.5])  # the fourth try: half of the area, as wide as high
    u[2] = 0.5
    u[:, 20:] = 0.0
    half, part = round(0.5**0.5 * 32), round(0.75**0.5 * 32)
    assert augment._resized_crop(u, 32).tolist() == [[0, 0, 32, 32], [0, 0, half, half], [0, 0, part, part]]


def literal_jitter(pixels: Tensor, strengths: list[float], order: tuple[int, ...]) -> Tensor:
    """One image (ch, H, H) of pixels in [0, 1], one step after the other, each a linear interpolation."""
    weights = torch.tensor([0.299, 0.587, 0.114] if len(pixels) == 3 else [1.0], dtype=pixels.dtype)
    for kind in order:
        grey = sum(weight * channel for weight, channel in zip(weights, pixels, strict=True))
        goal = (torch.zeros_like(pixels), grey.mean().expand_as(pixels), grey.expand_as(pixels))[kind]
        pixels = torch.lerp(pixels, goal, strengths[kind])
    return pixels


@pytest.mark.parametrize("order", list(permutations((0, 1, 2))))
@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_equals_the_literal_one(order: tuple[int, ...], channels: int) -> None:
    """Brightness, contrast and saturation of pixels, in every order, image by image."""
    normalisation = Normalisation(IMAGENET.mean[:channels], IMAGENET.std[:channels])
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (normalisation.mean, normalisation.std)
    )
    pixels = torch.rand(4, channels, 6, 6, generator=stream(0, "pixels"), dtype=torch.float64)
    strengths = 0.8 * torch.rand(4, 3, generator=stream(0, "strengths"), dtype=torch.float64) - 0.4
    maps = augment._jitter(strengths, torch.tensor(order).expand(4, 3), normalisation)
    actual = augment.apply(augment.AugmentParams(jitter=maps), (pixels - mean) / std)
    for row, image, by in zip(actual, pixels, strengths.tolist(), strict=True):
        torch.testing.assert_close(row, (literal_jitter(image, by, order) - mean) / std)


def test_jitter_is_drawn_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Tensor, Tensor]] = []

    def jitter(strengths: Tensor, order: Tensor, _: object) -> Tensor:
        calls.append((strengths, order))
        return torch.zeros(1)

    monkeypatch.setattr(augment, "_jitter", jitter)
    drawn("jitter", rows=6000)
    ((strengths, order),) = calls
    counts = Counter(tuple(row) for row in order.tolist())
    assert set(counts) == set(permutations((0, 1, 2)))
    assert all(850 < count < 1150 for count in counts.values())
    torch.testing.assert_close(
        strengths.std(0), torch.full((3,), 0.8 / 12**0.5, dtype=torch.float64), rtol=0.03, atol=0
    )
    assert -0.4 <= float(strengths.min()) < -0.39 < 0.39 < float(strengths.max()) <= 0.4


def test_jitter_moves_the_mean_as_far_as_published() -> None:
    """An image of mid grey: its mean moves by a part, within ±0.4, of what lies between it and black."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    batch = ((0.5 - mean) / std).expand(4000, -1, 4, 4)
    moved = (augment.apply(drawn("jitter", "lighting", rows=4000), batch) - batch).mean((1, 2, 3))
    assert float(moved.std()) == pytest.approx(0.51, abs=0.02)
    assert abs(float(moved.mean())) < 4 * 0.51 / 4000**0.5


def test_lighting_moves_along_the_axes_of_natural_colours() -> None:
    """Offsets of pixels, so that the covariance of normalised ones has the deviations of the data in it."""
    offsets = drawn("lighting", rows=20_000).lighting
    assert offsets is not None
    axes = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = axes @ torch.tensor([0.02175, 0.00188, 0.00045]).square().diag() @ axes.T
    spread = torch.tensor(IMAGENET.std)
    torch.testing.assert_close(offsets.T.cov() * spread[:, None] * spread, expected, rtol=0.05, atol=1e-6)


def test_cutmix_boxes_keep_their_share() -> None:
    boxes, cutmix_lambda = augment.cutmix_boxes(300, 32, stream(0, "box"))
    top, bottom, left, right = boxes.T
    for low, high in ((top, bottom), (left, right)):
        assert bool(((low >= 0) & (low <= high) & (high <= 32)).all())
    torch.testing.assert_close(cutmix_lambda, 1 - (bottom - top) * (right - left) / 1024)
    assert 0.5 < float(cutmix_lambda.mean()) < 0.8


def test_cutmix_boxes_equal_the_literal_ones() -> None:
    count, side = 200, 28
    boxes, _ = augment.cutmix_boxes(count, side, stream(0, "box"))
    numbers = torch.rand(3, count, generator=stream(0, "box"), dtype=torch.float64).T.tolist()
    for box, (ratio, *centre) in zip(boxes.tolist(), numbers, strict=True):
        cut = int(side * (1 - ratio) ** 0.5)
        expected = []
        for at in (int(side * relative) for relative in centre):
            expected += [max(at - cut // 2, 0), min(at + cut // 2, side)]
        assert box == expected


def test_mixing_takes_the_box_from_the_partner() -> None:
    batch = images(2)
    mixed = augment.mix(batch, torch.tensor([1, 0]), torch.tensor([[1, 3, 2, 8], [0, 0, 0, 0]]))
    assert torch.equal(mixed[1], batch[1])
    assert torch.equal(mixed[0, :, 1:3, 2:8], batch[1, :, 1:3, 2:8])
    mixed[0, :, 1:3, 2:8] = batch[0, :, 1:3, 2:8]
    assert torch.equal(mixed[0], batch[0])
