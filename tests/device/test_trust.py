"""Signed manifests: pinned on first use or beforehand; nothing else is believed from then on."""

from __future__ import annotations

import ipaddress
import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mdc_core.errors import SignatureError
from mdc_core.signing import jwks, new_key
from mdc_device import api, state, wire
from mdc_device.cli import main
from tests.device.conftest import SIGNER, served_set, serving

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
    again = ["fetch", device.url, "toy", "--k", "3", "--to", str(file)]
    device.manifest["version"] = 9
    assert main(again) == 0
    device.manifest["version"] = 8
    assert main(again) == 5
    assert "has seen version 9" in capsys.readouterr().err
    assert file.read_bytes() == device.subset(3)


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """What a server at 127.0.0.1 shows over TLS, and the certificate to be trusted."""
    folder = tmp_path_factory.mktemp("tls")
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
        .add_extension(here, critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "certificate").write_bytes(certificate.public_bytes(pem))
    (folder / "key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate", folder / "key")
    return context, folder / "certificate"


@pytest.fixture
def secure(certified: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The set over TLS."""
    context, certificate = certified
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    wire._certificates.cache_clear()
    with serving(served_set(), context) as device:
        yield device
    wire._certificates.cache_clear()


def pinned(file: Path) -> Any:
    remembered = state.load(file)
    assert remembered is not None
    return remembered.keyset


def test_keys_that_are_shown_before_they_sign_are_taken_over_tls(secure: Any, tmp_path: Path) -> None:
    file, successor = tmp_path / "toy.mdc", new_key()
    api.fetch(secure.url, "toy", file, k=1, access=ACCESS)
    secure.keyset = jwks([SIGNER.public, successor.public])
    api.grow(file, 2, access=ACCESS)
    assert pinned(file) == secure.keyset
    secure.signer = successor
    api.grow(file, 3, access=ACCESS)
    secure.keyset = jwks([successor.public])
    api.grow(file, 4, access=ACCESS)
    secure.signer = SIGNER
    with pytest.raises(
        SignatureError, match="--keyset FILE"
    ):  # taken out by the server, so no longer believed
        api.grow(file, 5, access=ACCESS)
    assert file.read_bytes() == secure.subset(4)


def test_a_pinned_key_in_the_key_set_does_not_vouch_for_another(secure: Any, tmp_path: Path) -> None:
    """Anybody can write it there. Only its signature counts."""
    file = tmp_path / "toy.mdc"
    api.fetch(secure.url, "toy", file, k=1, access=ACCESS)
    secure.signer = new_key()
    secure.keyset = jwks([SIGNER.public, secure.signer.public])
    with pytest.raises(SignatureError, match="--keyset FILE"):
        api.grow(file, 2, access=ACCESS)
    assert pinned(file) == jwks([SIGNER.public])


def test_without_tls_no_new_key_is_taken(device: Any, file: Path) -> None:
    successor = new_key()
    device.keyset = jwks([SIGNER.public, successor.public])
    api.grow(file, 3, access=ACCESS)
    assert pinned(file) == jwks([SIGNER.public])
    device.signer = successor
    with pytest.raises(SignatureError, match="--keyset FILE"):
        api.grow(file, 4, access=ACCESS)


def test_keys_that_were_given_are_not_exchanged(secure: Any, tmp_path: Path) -> None:
    file, given = tmp_path / "toy.mdc", jwks([SIGNER.public])
    secure.keyset = jwks([SIGNER.public, new_key().public])
    api.fetch(secure.url, "toy", file, k=1, access=api.Access("mdc_1_secret", keyset=given))
    assert pinned(file) == given
    assert asked_for_keys(secure) == 0


@pytest.mark.parametrize("shown", [None, {"keys": "none"}, jwks([new_key().public])])
def test_a_key_set_that_does_not_fit_waits_for_the_next_time(secure: Any, tmp_path: Path, shown: Any) -> None:
    """None, a broken one, and an old copy that does not hold the key which signs."""
    file = tmp_path / "toy.mdc"
    api.fetch(secure.url, "toy", file, k=1, access=ACCESS)
    secure.keyset = shown
    api.grow(file, 2, access=ACCESS)
    assert pinned(file) == jwks([SIGNER.public])
    assert file.read_bytes() == secure.subset(2)
