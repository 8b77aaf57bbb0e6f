"""Small archives as users would make them, and as they should not."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from PIL import Image


def image(width: int = 8, height: int = 8, mode: str = "RGB", kind: str = "PNG", colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), colour).save(buffer, kind)
    return buffer.getvalue()


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def images(train: int = 4, test: int = 0, mode: str = "RGB", colour: int = 0) -> dict[str, bytes]:
    """Members of a data set with the classes cat and dog."""
    counts = {"train": train, "test": test}
    return {
        f"{split}/{label}/{i}.png": image(mode=mode, colour=colour)
        for split, count in counts.items()
        for label in ("cat", "dog")
        for i in range(count)
    }


def arrays(**changes: Any) -> bytes:
    """An npz of 6 grey 8x8 images of 2 classes; a change of None leaves the array out."""
    content: dict[str, Any] = {
        "x_train": np.zeros((6, 8, 8), np.uint8),
        "y_train": np.array([0, 1, 0, 1, 0, 1]),
        **changes,
    }
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name, value in content.items() if value is not None})
    return buffer.getvalue()


def packed_info(name: str, content: bytes = b"x", **fields: Any) -> bytes:
    """A zip of one member whose directory entry has these fields."""
    buffer = io.BytesIO()
    info = zipfile.ZipInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, content)
    return buffer.getvalue()
