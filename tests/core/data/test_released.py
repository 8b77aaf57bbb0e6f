"""Import of released files, against a literal loop over how the released code cuts and orders its pieces."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mdc_core.data.released import import_released
from mdc_core.delivery.rankmajor import SetInfo
from mdc_core.errors import ConfigError, DataError


def _mosaics(classes: int = 3, ipc: int = 5, channels: int = 3, side: int = 12) -> tuple[Tensor, Tensor]:
    images = torch.rand(classes * ipc, channels, side, side, generator=torch.Generator().manual_seed(0))
    return images, torch.arange(classes).repeat_interleave(ipc)


def _save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def _pieces(mosaics: Tensor, factor: int) -> list[Tensor]:
    """All pieces of one class in the released order: one position after the other, all images of each."""
    side = mosaics.shape[-1] // factor
    pieces = []
    for row in range(factor):
        for column in range(factor):
            for mosaic in mosaics:
                top, left = row * side, column * side
                pieces.append(mosaic[:, top : top + side, left : left + side])
    return pieces


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_piece_p_becomes_tile_p(tmp_path: Path, factor: int, channels: int) -> None:
    images, labels = _mosaics(channels=channels)
    tiles, info = import_released(_save(tmp_path / "data.pt", [images, labels]), factor)
    side = 12 // factor
    assert tiles.shape == (5, 3, factor**2, channels, side, side)
    assert tiles.dtype == torch.float32
    assert tiles.is_contiguous()
    for label in range(3):
        pieces = _pieces(images[labels == label], factor)
        for number, piece in enumerate(pieces):
            assert torch.equal(tiles[number // factor**2, label, number % factor**2], piece)
    expected = {
        "ipc": 5,
        "factor": factor,
        "classes": ("0", "1", "2"),
        "image_size": 12,
        "channels": channels,
    }
    assert info == expected


def test_the_facts_fit_the_delivery_format(tmp_path: Path) -> None:
    path = _save(tmp_path / "data.pt", _mosaics())
    _, info = import_released(path, 2, classes=["a", "b", "c"])
    assert SetInfo(**info, mean=(0.5,) * 3, std=(0.2,) * 3).classes == ("a", "b", "c")


def test_the_last_updates_overshoot_is_clamped(tmp_path: Path) -> None:
    images, labels = _mosaics()
    images[0, 0, 0, 0], images[0, 0, 0, 1] = -0.1, 1.2
    tiles, _ = import_released(_save(tmp_path / "data.pt", (images, labels)), 1)
    assert tiles[0, 0, 0, 0, 0, :2].tolist() == [0, 1]
    assert torch.equal(tiles[0, 0, 0, 0, 0, 2:], images[0, 0, 0, 2:])


def test_a_stored_parameter_comes_back_as_plain_values(tmp_path: Path) -> None:
    images, labels = _mosaics()
    tiles, _ = import_released(_save(tmp_path / "data.pt", [torch.nn.Parameter(images.double()), labels]), 2)
    assert not tiles.requires_grad


IMAGES, LABELS = _mosaics()
WRONG = {
    "normalised": ([(IMAGES - 0.5) / 0.2, LABELS], "must not be normalised"),
    "bytes as floats": ([IMAGES * 255, LABELS], "must not be normalised"),
    "NaN": ([IMAGES * torch.nan, LABELS], "must not be normalised"),
    "integers": ([(IMAGES * 255).byte(), LABELS], "not floats"),
    "three axes": ([IMAGES[0], LABELS], "not floats"),
    "channels": ([IMAGES[:, :2], LABELS], "not floats"),
    "empty": ([IMAGES[:0], LABELS[:0]], "not floats"),
    "image-major labels": ([IMAGES, torch.arange(3).repeat(5)], "class by class"),
    "uneven classes": ([IMAGES, torch.tensor([0] * 6 + [1] * 4 + [2] * 5)], "class by class"),
    "labels from 1": ([IMAGES, LABELS + 1], "class by class"),
    "huge labels": ([IMAGES, LABELS * 2**50], "class by class"),
    "fewer labels": ([IMAGES, LABELS[:3]], r"labels of shape \(3,\)"),
    "soft labels": ([IMAGES, torch.eye(15)], r"labels of shape \(15, 15\)"),
    "a dictionary": ({"data": IMAGES, "labels": LABELS}, "pair"),
    "three things": ([IMAGES, LABELS, LABELS], "pair"),
    "no tensors": ([1, 2], "pair"),
    "not square": ([IMAGES[..., :10], LABELS], "12×10 pixels"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_other_contents_are_refused(tmp_path: Path, fault: str) -> None:
    content, message = WRONG[fault]
    with pytest.raises(DataError, match=message):
        import_released(_save(tmp_path / "data.pt", content), 2)


def test_padded_mosaics_are_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "data.pt", _mosaics())
    with pytest.raises(DataError, match="which factor 5 does not divide into equal square tiles"):
        import_released(path, 5)
    with pytest.raises(ConfigError, match="factor is 0"):
        import_released(path, 0)
    with pytest.raises(DataError, match="3 classes, but 2 class names"):
        import_released(path, 2, classes=["a", "b"])


class _Payload:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_code_in_the_file_runs(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    for number, content in enumerate(([_Payload(trap), LABELS], _Payload(trap))):
        with pytest.raises(DataError, match="not a file of tensors"):
            import_released(_save(tmp_path / f"{number}.pt", content), 2)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Payload(trap)))
    with pytest.raises(DataError, match="not a file of tensors"):
        import_released(tmp_path / "plain.pt", 2)
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 broken zip"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"data\.pt"):
        import_released(tmp_path / "data.pt", 2)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.pt cannot be opened"):
        import_released(tmp_path / "nowhere.pt", 2)
