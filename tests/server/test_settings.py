from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from typer.testing import CliRunner

from mdc_core.delivery.signing import PrivateKey
from mdc_core.errors import ConfigError
from server.app import create_app
from server.cli import app as cli
from server.settings import Settings


def test_everything_follows_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDC_DATA_DIR", str(tmp_path / "here"))
    monkeypatch.setenv("MDC_PORT", "9000")
    settings = Settings()
    assert settings.embedded
    assert settings.port == 9000
    assert settings.database_url == f"sqlite:///{tmp_path}/here/mdc.sqlite3"
    assert settings.broker_url == f"sqla+sqlite:///{tmp_path}/here/broker.sqlite3"
    assert settings.objects_url == f"file://{tmp_path}/here/objects"
    assert settings.data_root == tmp_path / "here" / "datasets"


def test_a_relative_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings().data_dir == tmp_path / "mdc-data"
    assert Settings().database_url == f"sqlite:///{tmp_path}/mdc-data/mdc.sqlite3"


def test_the_embedded_secret_is_made_once(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "a")
    secret = settings.secret_key()
    assert len(secret) >= 32
    assert settings.secret_key() == secret
    assert Settings(data_dir=tmp_path / "b").secret_key() != secret
    (tmp_path / "a" / "secret").write_text("short\n")
    with pytest.raises(ConfigError, match="holds 5 characters"):
        settings.secret_key()


@pytest.mark.parametrize(
    "remote",
    [{"database_url": "postgresql+psycopg://host/x"}, {"objects_url": "s3://bucket/x"}],
)
def test_elsewhere_a_secret_has_to_be_given(tmp_path: Path, remote: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="MDC_SECRET is not set"):
        Settings(data_dir=tmp_path, **remote).secret_key()
    settings = Settings(data_dir=tmp_path, secret=SecretStr("x" * 32), **remote)
    assert settings.secret_key() == b"x" * 32
    assert not (tmp_path / "secret").exists()
    assert "xxx" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("MDC_SECRET", "secret" + "x" * 25, "31 characters"),
        ("MDC_SIGNING_KEYS", "secret nonsense", "not JSON"),
        ("MDC_SIGNING_KEYS", '{"keys": [{"d": "secret"}]}', "not a private Ed25519"),
        ("MDC_CORS_ORIGINS", "https://a.test,b.test", "'b.test'"),
        ("MDC_CORS_ORIGINS", "https://a.test/", "'https://a.test/'"),
        ("MDC_DOWNLOADS", "torrent", "redirect"),
        ("MDC_PORT", "70000", "65535"),
        ("MDC_MAX_ATTEMPTS", "0", "max_attempts"),
        ("MDC_LEASE_RENEW_SECONDS", "90", "90 s"),
    ],
)
def test_a_wrong_setting_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=told) as caught:
        Settings()
    assert "secret" not in str(caught.value)


def test_the_embedded_signing_key_is_made_once(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "a")
    (key,) = settings.manifest_keys()
    assert settings.manifest_keys() == (key,)
    assert stat.S_IMODE((tmp_path / "a" / "signing.jwks").stat().st_mode) == 0o600
    assert Settings(data_dir=tmp_path / "b").manifest_keys() != (key,)
    (tmp_path / "a" / "signing.jwks").write_text("{}")
    with pytest.raises(ConfigError, match=r"signing\.jwks cannot be used"):
        settings.manifest_keys()


def test_elsewhere_a_signing_key_has_to_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("MDC_OBJECTS_URL", "memory://")
    with pytest.raises(ConfigError, match=r"python -m server\.cli create-signing-key"):
        Settings().manifest_keys()
    made = CliRunner().invoke(cli, ["create-signing-key"])
    assert made.exit_code == 0
    monkeypatch.setenv("MDC_SIGNING_KEYS", made.output)
    assert len(Settings().manifest_keys()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_new_signing_key_is_published_before_it_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after(*command: str) -> tuple[PrivateKey, ...]:
        """The keys once the command's output has been put in place."""
        monkeypatch.setenv("MDC_SIGNING_KEYS", CliRunner().invoke(cli, [*command]).output)
        return Settings().manifest_keys()

    monkeypatch.setenv("MDC_DATA_DIR", str(tmp_path))
    (first,) = after("create-signing-key")
    alone = CliRunner().invoke(cli, ["promote-signing-key"])
    assert alone.exit_code != 0
    assert "only one key" in alone.output
    signing, second = after("create-signing-key", "--rotate")
    assert signing == first != second
    assert after("promote-signing-key") == (second, first)


def test_origins_are_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().cors_origins == ()
    for text, expected in {
        "": (),
        "*": ("*",),
        "https://a.test, http://localhost:8080,http://[::1]:80": (
            "https://a.test",
            "http://localhost:8080",
            "http://[::1]:80",
        ),
    }.items():
        monkeypatch.setenv("MDC_CORS_ORIGINS", text)
        assert Settings().cors_origins == expected


def test_redirects_need_a_store_with_signed_urls(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no signed URLs"):
        create_app(Settings(data_dir=tmp_path, downloads="redirect"))
