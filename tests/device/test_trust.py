"""Signed manifests: pinned on first use or beforehand; nothing else is believed from then on."""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mdc_core.delivery.signing import jwks, new_key
from mdc_core.errors import SignatureError
from mdc_device import api, files, known_servers, state, wire
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
    assert "which is not in the key set" in capsys.readouterr().err
    assert not file.exists()
    trusted.write_text(json.dumps(device.keyset))
    assert main(command) == 0
    assert asked_for_keys(device) == 0
    for text in ("[]", "{", '{"keys": 1}'):
        trusted.write_text(text)
        assert main(command) == 2
        assert "not a key set" in capsys.readouterr().err


def test_a_signature_cannot_be_left_out(device: Any, file: Path, tmp_path: Path) -> None:
    device.signer = None
    with pytest.raises(SignatureError, match="without a signature"):
        api.grow(file, 3, access=ACCESS)
    # Nor at the first time, where the server has keys.
    with pytest.raises(SignatureError, match="without a signature"):
        api.fetch(device.url, "toy", tmp_path / "new", access=ACCESS)


def test_a_server_without_keys_must_be_allowed_to_sign_nothing(
    device: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device.signer, device.keyset = None, None
    file = tmp_path / "new"
    fetch = ["fetch", device.url, "toy", "--k", "2", "--to", str(file)]
    assert main(fetch) == 5
    assert "add --unsigned" in capsys.readouterr().err
    assert not file.exists()
    assert main([*fetch, "--unsigned"]) == 0
    assert main(["status", str(file)]) == 0
    assert main(["verify", str(file)]) == 0
    said = capsys.readouterr()
    assert "not signed: matching digests prove that nothing was damaged, but not who made it" in said.out
    assert "verified" not in said.out + said.err
    assert main(["grow", str(file), "--k", "3"]) == 5
    assert main(["grow", str(file), "--k", "3", "--unsigned", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"] is False
    found = api.status(file)
    assert (found.signed, found.intact, found.verified, found.trust) == (False, True, False, "unsigned")
    # Where keys are known, nothing goes without a signature.
    device.signer, device.keyset = SIGNER, jwks([SIGNER.public])
    api.grow(file, 4, access=ACCESS)
    device.signer = None
    assert main(["grow", str(file), "--k", "5", "--unsigned"]) == 5
    assert file.read_bytes() == device.subset(4)


@pytest.fixture
def remote(device: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server under a name of its own, which leads to this machine."""
    resolve = socket.getaddrinfo

    def resolved(host: Any, *more: Any, **options: Any) -> Any:
        return resolve("127.0.0.1" if host == "condense.example" else host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    device.url = device.url.replace("127.0.0.1", "condense.example")
    return device


def test_first_use_over_http_verifies_nobody(
    remote: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "toy.mdc"
    assert main(["fetch", remote.url, "toy", "--k", "1", "--to", str(file)]) == 0
    assert main(["grow", str(file), "--k", "2"]) == 0
    assert main(["status", str(file)]) == 0
    text = capsys.readouterr().out
    assert "signed by keys that were trusted on first use, over an insecure connection" in text
    assert "give them as --keyset FILE" in text
    assert "verified" not in text
    assert not api.status(file).verified
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps(remote.keyset))
    assert main(["grow", str(file), "--k", "3", "--keyset", str(keys)]) == 0
    assert "verified" in capsys.readouterr().out
    # From now on they count as given, for other files too.
    assert main(["fetch", remote.url, "toy", "--k", "1", "--to", str(tmp_path / "other"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trust"] == "given"


def test_what_is_known_of_a_server_holds_for_every_file(
    remote: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = remote, served_set(version=2, seed=1)
    fetch = ["fetch", remote.url, "toy", "--k", "1", "--to"]
    remote.manifest, remote.obj = second.manifest, second.obj
    assert main([*fetch, str(tmp_path / "a")]) == 0
    old = served_set()
    remote.manifest, remote.obj = old.manifest, old.obj
    assert main([*fetch, str(tmp_path / "b")]) == 5
    assert "this device has seen version 2" in capsys.readouterr().err
    assert main(["plan", remote.url, "toy"]) == 5
    # Who asks for the older one by its number gets it, but no other set under that number.
    words = ["fetch", remote.url, "toy@1", "--k", "1", "--to", str(tmp_path / "b")]
    assert main(words) == 0
    other = served_set(seed=2)
    remote.manifest, remote.obj = other.manifest, other.obj
    capsys.readouterr()
    assert main([*words[:-1], str(tmp_path / "c")]) == 5
    assert "version 1 of 'toy' differs" in capsys.readouterr().err
    remote.manifest, remote.obj = second.manifest, second.obj
    # Nor does another key count, for a file that is new.
    first.signer = new_key()
    first.keyset = jwks([first.signer.public])
    assert main([*fetch, str(tmp_path / "d")]) == 5
    assert "--keyset FILE" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_another_set_of_the_server_has_versions_of_its_own(remote: Any, tmp_path: Path) -> None:
    """And what is remembered is bounded."""
    remote.manifest["version"] = 7
    api.fetch(remote.url, "toy", tmp_path / "a", k=1, access=ACCESS)
    known = known_servers.recall(remote.url)
    assert known is not None
    assert list(known.sets) == ["toy"]
    for version in range(8, 8 + known_servers.VERSIONS):
        remote.manifest["version"] = version
        api.plan(remote.url, "toy", access=ACCESS)
    known = known_servers.recall(remote.url)
    assert known is not None
    assert len(known.sets["toy"]) == known_servers.VERSIONS
    assert max(known.sets["toy"]) == version


def test_a_server_on_this_machine_is_remembered_by_its_files_alone(device: Any, tmp_path: Path) -> None:
    api.fetch(device.url, "toy", tmp_path / "a", k=1, access=ACCESS)
    device.signer = new_key()
    device.keyset = jwks([device.signer.public])  # set up anew
    api.fetch(device.url, "toy", tmp_path / "b", k=1, access=ACCESS)
    assert known_servers.recall(device.url) is None
    assert not (tmp_path / "state-home").exists()


def test_memory_that_is_damaged_or_cannot_be_written_is_named(
    remote: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch = ["fetch", remote.url, "toy", "--k", "1", "--to", str(tmp_path / "a")]
    assert main(fetch) == 0
    for text in ("{", "[]", '{"known_version": 1}', '{"known_version": 1, "sets": [], "keyset": 0}'):
        known_servers.path_of(remote.url).write_text(text)
        assert main(fetch) == 5
        assert "is damaged: delete it" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    remote.requests.clear()
    assert main(fetch) == 1
    assert "set XDG_STATE_HOME to a writable folder" in capsys.readouterr().err
    assert remote.ranges() == []


def test_a_state_file_of_an_older_release_is_read(device: Any, file: Path) -> None:
    document = json.loads(files.state_of(file).read_text())
    assert document.pop("trust") == "local"
    for url, trust in (("https://a.example", "https"), ("http://a.example", "http")):
        files.state_of(file).write_text(json.dumps({**document, "url": url}))
        assert api.status(file).trust == trust


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


def test_a_certificate_that_is_not_to_be_trusted_is_named_at_once(
    certified: tuple[ssl.SSLContext, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wire._certificates.cache_clear()
    tried: list[object] = []
    context, _ = certified
    context.sni_callback = lambda *given: tried.append(given)
    with serving(served_set(), context) as device:
        url = device.url.replace("127.0.0.1", "localhost")  # an address has no server name
        assert main(["fetch", url, "toy", "--to", str(tmp_path / "a")]) == 5
    context.sni_callback = None
    err = capsys.readouterr().err
    assert "the certificate of localhost cannot be trusted" in err
    assert "SSL_CERT_FILE" in err
    assert len(tried) == 1


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
