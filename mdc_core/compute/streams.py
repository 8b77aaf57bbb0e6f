"""Randomness: every stream is a generator seeded from what it is for, so nothing reads or moves a global seed."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, purpose: str, outer: int = 0, inner: int = 0) -> torch.Generator:
    """A CPU generator for one purpose at one place of the loops.

    The same four values give the same numbers on every machine and for every device, so a checkpoint needs no
    generator state and a resumed run is the same run.
    """
    key = f"{seed}/{purpose}/{outer}/{inner}".encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
