"""Settings from the environment (`MDC_…`), shared by the API and the worker."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from limits import parse as parse_rate
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from mdc_core.config.settings import faults
from mdc_core.delivery.signing import PrivateKey, dump_private_keys, load_private_keys, new_key
from mdc_core.errors import ConfigError, FormatError

MIN_SECRET = 32
"""Characters that a configured secret has at least: 128 bits even when it is written in hexadecimal."""

GiB = 2**30
MiB = 2**20

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]+)?|https?://\[[0-9a-fA-F:]+\](:[0-9]+)?")


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _listed(value: Any) -> Any:
    """The parts of a text with commas between; pass on what is a list already."""
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def _origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"the origin {origin!r} is not one: write scheme and host, such as https://example.org"
            )
    return origins


def _networks(proxies: tuple[str, ...]) -> tuple[str, ...]:
    for proxy in proxies:
        try:
            ip_network(proxy)
        except ValueError as error:
            raise ConfigError(
                f"the proxy {proxy!r} is none: write an address or a network, such as 10.0.0.5 or 10.0.0.0/24"
            ) from error
    return proxies


def _rate(text: str) -> str:
    try:
        if text:
            parse_rate(text)
    except ValueError as error:
        raise ConfigError(
            f"the rate {text!r} is not one: write it like 100/minute, or nothing for none"
        ) from error
    return text


def _in_data_dir(template: str) -> Any:
    """A field that follows `data_dir` unless it is set; `{}` in the template is the folder."""
    return Field(default_factory=lambda data: template.format(data.get("data_dir", "")))


Rate = Annotated[str, AfterValidator(_rate)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class Settings(BaseSettings):
    """What differs between two installations. Every field is `MDC_<NAME>` in the environment."""

    # An error shows no input, as that holds the secrets.
    model_config = SettingsConfigDict(
        env_prefix="MDC_", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    data_dir: AbsolutePath = Field(default=Path("mdc-data"), validate_default=True)
    """Folder of the embedded mode: database, broker, objects, secret, signing key, first admin key."""
    database_url: str = _in_data_dir("sqlite:///{}/mdc.sqlite3")
    """SQLAlchemy URL: `sqlite:///FILE` or `postgresql+psycopg://…`."""
    broker_url: str = _in_data_dir("sqla+sqlite:///{}/broker.sqlite3")
    """Celery broker URL, for example `redis://…`."""
    broker_prefix: str = Field(default="mdc:", pattern=r"^[\x21-\x7e]{0,64}$")
    """Begin of every key in Redis, where several installations share one."""
    objects_url: str = _in_data_dir("file://{}/objects")
    """Object store: `file:///FOLDER`, `s3://BUCKET/PREFIX`, `memory://`."""
    data_root: AbsolutePath = Field(default_factory=lambda data: Path(data.get("data_dir", ".")) / "datasets")
    """Folder that the named data sets are read from, or downloaded to."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    secret: SecretStr | None = None
    """Key of the HMAC that API keys are stored under; made by itself in the embedded mode only."""
    signing_keys: SecretStr | None = None
    """Private JWKS whose first key signs manifests; made by itself in the embedded mode only."""
    manifest_days: int = Field(default=30, ge=1, le=3650)
    """Days after which a manifest must be fetched again."""
    trusted_proxies: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_networks)
    ] = ()
    """Addresses or networks of the proxies before the API, with commas between: they may tell who the client is."""
    downloads: Literal["proxy", "redirect"] = "proxy"
    """Whether subsets come through the API, or where possible from the object store by signed URLs."""
    cors_origins: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_origins)
    ] = ()
    """Origins whose web pages may read sets and subsets, with commas between; `*`: every one."""
    cache_bytes: int = Field(default=20 * MiB, ge=0)
    """Memory for ranks that were delivered, in each API process."""
    upload_max_bytes: int = Field(default=2 * GiB, ge=1)
    """Largest data set that may be uploaded."""
    key_rate: Rate = "6000/minute"
    """Requests of one API key, those for sets and subsets not counted; empty: any number."""
    refusal_rate: Rate = "60/minute"
    """Keys that do not work from one address, before it may try no new ones; empty: any number."""
    key_jobs: int = Field(default=100, ge=1)
    """Jobs of one API key that wait or run."""
    key_streams: int = Field(default=100, ge=1)
    """Streams of events that one API key keeps open, in each API process."""
    key_upload_bytes: int = Field(default=20 * GiB, ge=0)
    """Bytes that one API key may have uploaded."""
    upload_days: int | None = Field(default=None, ge=1, le=36500)
    """Days after which an upload is deleted that no job has named meanwhile; none: uploads stay until deleted."""
    max_attempts: int = Field(default=5, ge=1)
    """Attempts after which an interrupted job fails."""
    max_runtime_seconds: int | None = Field(default=None, ge=1)
    """Longest time that a job may run, all attempts together; none: as long as its request says."""
    max_expected_seconds: float = Field(default=7 * 86400, ge=0)
    """Longest time that a job may be expected to take, while a worker tells; 0: any."""
    lease_seconds: float = Field(default=90, gt=0)
    """How long a worker holds a job without renewing its lease."""
    lease_renew_seconds: float = Field(default=15, gt=0)
    """How often it renews."""
    checkpoint_seconds: float = Field(default=60, ge=0)
    """Least time between two checkpoints of a job."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of a job; 0: one per core. Small images are condensed about as fast with 1."""
    stuck_seconds: float = Field(default=4 * 3600, gt=0)
    """Time without progress after which a job's process is killed; an outer loop must end within it."""
    kill_grace_seconds: float = Field(default=120, ge=0)
    """Time that a stopped job has to write its checkpoint before it is killed."""
    sweep_age_seconds: float = Field(default=7 * 24 * 3600, ge=0)
    """Age from which an object that nothing refers to is deleted."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lease_renew_seconds >= self.lease_seconds:
            raise ConfigError(
                f"MDC_LEASE_RENEW_SECONDS is {self.lease_renew_seconds:g}, but the lease ends after "
                f"{self.lease_seconds:g} s: renew it at least twice in that time"
            )
        if self.secret is not None and len(self.secret.get_secret_value()) < MIN_SECRET:
            raise ConfigError(
                f"MDC_SECRET has {len(self.secret.get_secret_value())} characters: it takes at least "
                f"{MIN_SECRET}, for example the output of: openssl rand -hex 32"
            )
        if self.signing_keys is not None:
            _signing_keys("MDC_SIGNING_KEYS", self.signing_keys.get_secret_value())
        return self

    @property
    def embedded(self) -> bool:
        """Whether everything lives in a folder of this machine: SQLite and a folder of objects."""
        return self.database_url.startswith("sqlite") and self.objects_url.startswith("file:")

    @property
    def uploads_dir(self) -> Path:
        """Folder for bodies that are still arriving."""
        return self.data_dir / "uploads"

    def secret_key(self) -> bytes:
        """The HMAC key: `secret`, or in the embedded mode a generated one in `data_dir`/secret (mode 0600).

        Raises `ConfigError` when it is missing outside the embedded mode. Only the API needs it.
        """
        if self.secret is not None:
            return self.secret.get_secret_value().encode()
        if not self.embedded:
            raise ConfigError(
                "MDC_SECRET is not set: with a database server or a remote object store choose one of at "
                f"least {MIN_SECRET} characters, for example the output of: openssl rand -hex 32"
            )
        return _kept_secret(self.data_dir / "secret")

    def manifest_keys(self) -> tuple[PrivateKey, ...]:
        """The keys of manifests: the first signs, all are published.

        They are `signing_keys`, or in the embedded mode one that is made in `data_dir`/signing.jwks (mode 0600).
        Raises `ConfigError` when they are missing outside the embedded mode. Only the API needs them.
        """
        if self.signing_keys is not None:
            return _signing_keys("MDC_SIGNING_KEYS", self.signing_keys.get_secret_value())
        if not self.embedded:
            raise ConfigError(
                "MDC_SIGNING_KEYS is not set: with a database server or a remote object store set it to the "
                "output of: python -m server.cli create-signing-key"
            )
        path = self.data_dir / "signing.jwks"
        return _signing_keys(str(path), _kept(path, lambda: dump_private_keys([new_key()])).decode())


def _signing_keys(source: str, text: str) -> tuple[PrivateKey, ...]:
    try:
        return load_private_keys(text)
    except FormatError as error:
        raise ConfigError(f"{source} cannot be used: {error}") from None


def _kept(path: Path, make: Callable[[], str]) -> bytes:
    """The content of `path`, made at first; two processes that start together get the same one."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, make(), replace=False)
    return path.read_bytes().strip()


def _kept_secret(path: Path) -> bytes:
    kept = _kept(path, lambda: secrets.token_hex(32))
    if len(kept) < MIN_SECRET:
        raise ConfigError(
            f"{path} holds {len(kept)} characters, a secret takes at least {MIN_SECRET}: restore the file "
            "(a new secret makes every API key invalid)"
        )
    return kept


def wrong_settings(error: ValidationError) -> str:
    """Which variables `Settings()` refused, and why."""
    return faults(error, lambda path: f"MDC_{path.replace('.', '_').upper()}")


def write_private(path: Path, text: str, *, replace: bool) -> None:
    """Write `text` and a line end to `path` with mode 0600, whole or not at all.

    With `replace` false an existing file is left as it is.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mkstemp makes mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
            return
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        Path(temporary).unlink(missing_ok=True)
