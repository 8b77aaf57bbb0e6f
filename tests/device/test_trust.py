"""Signed manifests: pinned on first use or beforehand; nothing else is believed from then on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mdc_core.errors import SignatureError
from mdc_core.signing import jwks, new_key
from mdc_device import api, state
from mdc_device.cli import main

ACCESS = api.Access("mdc_1_secret", timeout_s=10, retries=0)


@pytest.fixture
def file(device: Any, tmp_path: Path) -> Path:
    """Subset 2, fetched from a server that signs."""
    api.fetch(device.url, "toy", tmp_path / "toy.mdc", k=2, access=ACCESS)
    return tmp_path / "toy.mdc"


def asked_for_keys(device: Any) -> int:
    return sum(path == "/v1/keyset" for path, _ in device.requests)


def test_keys_are_pinned_on_first_use(device: Any, file: Path) -> None:
    remembered = state.load(file)
    assert remembered is not None
    assert remembered.keyset == device.keyset
    assert asked_for_keys(device) == 1
    device.keyset = jwks([new_key().public])
    api.grow(file, 3, access=ACCESS)
    api.fetch(device.url, "toy", file, k=1, access=ACCESS)
    assert asked_for_keys(device) == 1
    assert file.read_bytes() == device.subset(1)
    assert api.status(file).signed


def test_another_key_is_refused_even_if_the_server_offers_it(
    device: Any, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device.signer = new_key()
    device.keyset = jwks([device.signer.public])
    for command in (
        ["grow", str(file), "--k", "3"],
        ["fetch", device.url, "toy", "--k", "3", "--to", str(file)],
    ):
        assert main(command) == 5
        assert "--keyset FILE" in capsys.readouterr().err
        assert file.read_bytes() == device.subset(2)
    trusted = tmp_path / "keys.json"
    trusted.write_text(json.dumps(device.keyset))
    assert main(["grow", str(file), "--k", "3", "--keyset", str(trusted)]) == 0
    # These are pinned now.
    assert main(["grow", str(file), "--k", "4"]) == 0
    assert file.read_bytes() == device.subset(4)


def test_keys_can_be_given_beforehand(
    device: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trusted, file = tmp_path / "keys.json", tmp_path / "toy.mdc"
    trusted.write_text(json.dumps(jwks([new_key().public])))
    command = ["fetch", device.url, "toy", "--k", "1", "--to", str(file), "--keyset", str(trusted)]
    assert main(command) == 5
    assert "which the key set does not hold" in capsys.readouterr().err
    assert not file.exists()
    trusted.write_text(json.dumps(device.keyset))
    assert main(command) == 0
    assert asked_for_keys(device) == 0
    for text in ("[]", "{", '{"keys": 1}'):
        trusted.write_text(text)
        assert main(command) == 2
        assert "no key set" in capsys.readouterr().err


def test_a_signature_cannot_be_left_out(device: Any, file: Path, tmp_path: Path) -> None:
    device.signer = None
    with pytest.raises(SignatureError, match="without a signature"):
        api.grow(file, 3, access=ACCESS)
    # Nor at the first time, where the server has keys.
    with pytest.raises(SignatureError, match="without a signature"):
        api.fetch(device.url, "toy", tmp_path / "new", access=ACCESS)


def test_a_server_without_keys_does_not_sign(device: Any, tmp_path: Path) -> None:
    device.signer, device.keyset = None, None
    file = tmp_path / "new"
    api.fetch(device.url, "toy", file, k=2, access=ACCESS)
    assert not api.status(file).signed
    assert api.verify(file).verified


def test_signed_without_keys_is_refused(device: Any, tmp_path: Path) -> None:
    device.keyset = None
    with pytest.raises(SignatureError, match="offers no keys"):
        api.fetch(device.url, "toy", tmp_path / "new", access=ACCESS)
    device.keyset = {"keys": "none"}
    with pytest.raises(SignatureError, match="no key set at"):
        api.fetch(device.url, "toy", tmp_path / "new", access=ACCESS)


def test_signed_does_not_mean_current(device: Any, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device.manifest["expires"] = "2020-01-01T00:00:00Z"
    assert main(["grow", str(file), "--k", "3"]) == 5
    assert "expired at 2020" in capsys.readouterr().err
    device.manifest["expires"] = None
    device.manifest["version"] = 9
    assert main(["grow", str(file), "--k", "3"]) == 0
    device.manifest["version"] = 8
    assert main(["grow", str(file), "--k", "4"]) == 5
    assert "has seen version 9" in capsys.readouterr().err
    assert file.read_bytes() == device.subset(3)
