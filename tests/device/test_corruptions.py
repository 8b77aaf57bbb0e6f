"""A thousand ways to damage a file, its manifest, or the signed manifest on its way to the device: each is noticed,
and mended by fetching the bad ranks alone.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdc_core.delivery import rankmajor
from mdc_core.delivery.signing import new_key, sign
from mdc_core.errors import FormatError
from mdc_device import api, files, state
from mdc_device.trust import JOSE
from tests.device.conftest import SIGNER

ACCESS = api.Access("mdc_1_secret", timeout_s=10, retries=1)
ROUNDS = 1000
OTHER = new_key()


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
    altered: Callable[[bytes], tuple[str, bytes]] | None = None
    """What the server makes of the manifest that it sends; None: it signs it."""

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

    def on_the_wire(self, altered: Callable[[bytes], tuple[str, bytes]]) -> None:
        """A damaged rank, so that the server has to be asked, which then answers with an `altered` manifest."""
        rank = self.below(self.k + 1, 1)
        self.data[rankmajor.rank_range(self.info, rank)[0] + self.below(self.info.rank_bytes)] ^= 1
        self.altered = altered

    def flip_signature(self) -> None:
        position, bit = self.below(64), 1 << self.below(8)

        def altered(text: bytes) -> tuple[str, bytes]:
            head, payload, signature = sign(text, SIGNER).split(".")
            changed = bytearray(base64.urlsafe_b64decode(signature + "=="))
            changed[position] ^= bit
            return JOSE, f"{head}.{payload}.{base64.urlsafe_b64encode(changed).decode().rstrip('=')}".encode()

        self.on_the_wire(altered)

    def edit_what_was_signed(self) -> None:
        position, value = self.draw.random(), self.below(10)

        def altered(text: bytes) -> tuple[str, bytes]:
            digits = [match.start() for match in re.finditer(rb"[0-9]", text)]
            place = digits[int(position * len(digits))]
            old = text[place] - 48
            changed = text[:place] + b"%d" % ((old + 1 + value % 9) % 10) + text[place + 1 :]
            head, _, signature = sign(text, SIGNER).split(".")
            return JOSE, ".".join((head, sign(changed, SIGNER).split(".")[1], signature)).encode()

        self.on_the_wire(altered)

    def sign_with_another_key(self) -> None:
        self.on_the_wire(lambda text: (JOSE, sign(text, OTHER).encode()))

    def sign_in_the_name_of_the_right_key(self) -> None:
        def altered(text: bytes) -> tuple[str, bytes]:
            ours, theirs = sign(text, SIGNER).split("."), sign(text, OTHER).split(".")
            return JOSE, ".".join((*ours[:2], theirs[2])).encode()

        self.on_the_wire(altered)

    def do_not_sign(self) -> None:
        self.on_the_wire(lambda text: ("application/json", text))

    def let_it_expire(self) -> None:
        year = self.below(2026, 1990)

        def altered(text: bytes) -> tuple[str, bytes]:
            changed = {**json.loads(text), "expires": f"{year}-01-01T00:00:00Z"}
            return JOSE, sign(json.dumps(changed).encode(), SIGNER).encode()

        self.on_the_wire(altered)

    def replay_an_older_version(self) -> None:
        self.on_the_wire(lambda _: (JOSE, sign(self.older, SIGNER).encode()))


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
    Damage.flip_signature,
    Damage.edit_what_was_signed,
    Damage.sign_with_another_key,
    Damage.sign_in_the_name_of_the_right_key,
    Damage.do_not_sign,
    Damage.let_it_expire,
    Damage.replay_an_older_version,
)


def bad_ranks(data: bytes | bytearray, right: bytes, k: int, info: rankmajor.SetInfo) -> set[int]:
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
    monkeypatch.setattr("mdc_device.files.os.fsync", lambda handle: None)
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
        while (bytes(damage.data), damage.manifest) == (right, manifest):
            kind(damage)
        file.write_bytes(damage.data)
        path.write_bytes(damage.manifest)

        with pytest.raises(FormatError):
            api.verify(file)
        device10.requests.clear()
        device10.sent_bytes = 0
        if damage.altered is not None:
            device10.altered = damage.altered
            with pytest.raises(FormatError):
                api.verify(file, repair=True, access=ACCESS)
            device10.altered = None
            assert device10.ranges() == []
            assert (file.read_bytes(), path.read_bytes()) == (bytes(damage.data), damage.manifest)

        found = api.verify(file, repair=True, access=ACCESS)
        assert found.verified
        assert file.read_bytes() == device10.subset(found.k)
        assert path.read_bytes() == manifest
        # A whole and valid header of another size is believed, as after an interrupted growth or shrinking.
        assert found.k == size or kind is Damage.other_header
        bad = bad_ranks(damage.data, device10.subset(found.k), found.k, device10.info)
        assert asked(device10.ranges(), device10.info) == bad
        # Where the file was cut inside a rank, only the rest of that rank is fetched.
        head, size_of_rank = rankmajor.header_size(device10.info), device10.info.rank_bytes
        cut = max(len(damage.data) - head, 0) % size_of_rank if kind is Damage.truncate else 0
        assert device10.sent_bytes == len(bad) * size_of_rank - cut
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
