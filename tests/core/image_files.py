"""Small image files, folders and zips, in memory and on disk."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    """Random uint8 pixels (H, W, 3), or (H, W) for one channel."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def small_set(channels: int = 3) -> dict[str, bytes]:
    """Two classes of three training images and one test image each."""
    names = [f"train/{c}/{i}.png" for c in ("cat", "dog") for i in range(3)] + [
        f"test/{c}/0.png" for c in ("cat", "dog")
    ]
    return {name: encoded(pixels(seed, channels=channels)) for seed, name in enumerate(names)}


def write_folder(base: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(content)
    return base


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def overlapping(path: Path, which: str) -> Path:
    """The zip, changed so that its `first` member reaches into the next one, or its `last` into the directory."""
    with zipfile.ZipFile(path) as archive:
        members = sorted(archive.infolist(), key=lambda info: info.header_offset)
        info, end = (
            (members[0], members[1].header_offset) if which == "first" else (members[-1], archive.start_dir)
        )
    content = bytearray(path.read_bytes())
    place = content.rindex(struct.pack("<LL", info.CRC, info.compress_size)) + 4  # in the directory
    content[place : place + 4] = struct.pack("<L", end - info.header_offset + 60)
    path.write_bytes(content)
    return path
