from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from mdc_core.errors import ConfigError
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
        ("MDC_SECRET", "x" * 31, "31 characters"),
        ("MDC_PORT", "70000", "65535"),
        ("MDC_MAX_ATTEMPTS", "0", "max_attempts"),
        ("MDC_LEASE_RENEW_SECONDS", "90", "90 s"),
    ],
)
def test_a_wrong_setting_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=told):
        Settings()
