"""Randomness: every purpose has its own generator. Nothing reads or changes a global seed."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, purpose: str, outer: int = 0, inner: int = 0) -> torch.Generator:
    """A CPU generator for one purpose in one iteration.

    The same four values give the same numbers on every machine and for every device. So a checkpoint needs no
    generator state, and a resumed run draws what the uninterrupted run draws.
    """
    key = f"{seed}/{purpose}/{outer}/{inner}".encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
