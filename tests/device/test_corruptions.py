"""A thousand ways to damage a file: each is noticed, and mended by fetching the bad ranks alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdc_core import rankmajor
from mdc_core.errors import FormatError
from mdc_device import api, files, state

ACCESS = api.Access("mdc_1_secret", timeout_s=10, retries=1)
ROUNDS = 1000


@dataclass
class Damage:
    """The content of a file of subset k and of its manifest, to be damaged."""

    data: bytearray
    manifest: bytes
    k: int
    info: rankmajor.SetInfo
    draw: np.random.Generator
    older: bytes
    """An earlier manifest of the set."""

    def below(self, end: int, start: int = 0) -> int:
        return int(self.draw.integers(start, end))

    def flip_bits(self) -> None:
        for _ in range(self.below(4, 1)):
            self.data[self.below(len(self.data))] ^= 1 << self.below(8)

    def truncate(self) -> None:
        del self.data[self.below(len(self.data)) :]

    def extend(self) -> None:
        self.data += self.draw.bytes(self.below(3 * self.info.rank_bytes, 1))

    def swap_ranks(self) -> None:
        first, second = sorted(self.draw.choice(self.k, 2, replace=False) + 1)
        (a, b), (c, d) = (
            rankmajor.rank_range(self.info, int(first)),
            rankmajor.rank_range(self.info, int(second)),
        )
        self.data[a:b], self.data[c:d] = self.data[c:d], self.data[a:b]

    def edit_header(self) -> None:
        self.data[self.below(rankmajor.header_size(self.info))] = self.below(256)

    def other_header(self) -> None:
        k = self.below(self.info.ipc + 1, 1)
        self.data[: rankmajor.header_size(self.info)] = rankmajor.header(self.info, k)

    def edit_size(self) -> None:
        self.data[:] = self.data.replace(b'"ipc":"10"', b'"ipc":"%d"' % self.below(99, 11))

    def stale_manifest(self) -> None:
        self.manifest = self.older

    def edit_manifest(self) -> None:
        changed = bytearray(self.manifest)
        changed[self.below(len(changed))] ^= 1 << self.below(8)
        self.manifest = bytes(changed)


KINDS: tuple[Callable[[Damage], None], ...] = (
    Damage.flip_bits,
    Damage.truncate,
    Damage.extend,
    Damage.swap_ranks,
    Damage.edit_header,
    Damage.other_header,
    Damage.edit_size,
    Damage.stale_manifest,
    Damage.edit_manifest,
)


def bad_ranks(data: bytes, right: bytes, k: int, info: rankmajor.SetInfo) -> set[int]:
    """The ranks that differ from the right file, by comparing bytes."""
    spans = {r: slice(*rankmajor.rank_range(info, r)) for r in range(1, k + 1)}
    return {r for r, span in spans.items() if data[span] != right[span]}


def asked(ranges: list[str | None], info: rankmajor.SetInfo) -> set[int]:
    """The ranks that these Range headers touch."""
    touched: set[int] = set()
    for text in ranges:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", text or "")
        assert match
        first, last = (
            (int(edge) - rankmajor.header_size(info)) // info.rank_bytes for edge in match.groups()
        )
        touched |= set(range(first + 1, last + 2))
    return touched


def test_a_thousand_corruptions(device10: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is tested here is bytes, not storage that loses power: a thousand files need not be synced.
    monkeypatch.setattr(files.os, "fsync", lambda handle: None)
    draw = np.random.default_rng(7)
    older = json.dumps(device10.manifest).encode()
    device10.manifest["version"] = 2
    file = tmp_path / "file"
    path = files.manifest_of(file)
    done = {kind.__name__: 0 for kind in KINDS}
    for turn in range(ROUNDS):
        if turn % 100 == 0:  # a new size now and then, two ranks at least
            size = int(draw.integers(2, 11))
            api.fetch(device10.url, "toy", file, k=size, access=ACCESS)
            right, manifest = file.read_bytes(), path.read_bytes()
        kind = KINDS[int(draw.integers(len(KINDS)))]
        damage = Damage(bytearray(right), manifest, size, device10.info, draw, older)
        while (damage.data, damage.manifest) == (right, manifest):
            kind(damage)
        file.write_bytes(damage.data)
        path.write_bytes(damage.manifest)

        with pytest.raises(FormatError):
            api.verify(file)

        device10.requests.clear()
        found = api.verify(file, repair=True, access=ACCESS)
        assert found.verified
        assert file.read_bytes() == device10.subset(found.k)
        assert path.read_bytes() == manifest
        # A whole and valid header of another size is believed, as after an interrupted growth or shrinking.
        assert found.k == size or kind is Damage.other_header
        bad = bad_ranks(damage.data, device10.subset(found.k), found.k, device10.info)
        assert asked(device10.ranges(), device10.info) == bad
        assert set(found.repaired_ranks) == bad
        done[kind.__name__] += 1
        if found.k != size:
            file.write_bytes(right)
            state.remember_size(file, size)
    assert sum(done.values()) == ROUNDS
    assert min(done.values()) > ROUNDS / len(KINDS) / 2


def test_repair_without_a_server(device10: Any, tmp_path: Path) -> None:
    """Header and length are mended where nobody answers."""
    file = tmp_path / "file"
    api.fetch(device10.url, "toy", file, k=4, access=ACCESS)
    device10.status = 503
    right = file.read_bytes()
    for damaged in (right + b"more", b"\0" * 100 + right[100:], right[:7] + b"\xff" + right[8:]):
        file.write_bytes(damaged)
        assert api.verify(file, repair=True, access=ACCESS).verified
        assert file.read_bytes() == right
