"""Settings of the API and the worker, from `MDC_…` in the environment."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from limits import parse as parse_rate
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from mdc_core.config.settings import faults
from mdc_core.delivery.signing import PrivateKey, dump_private_keys, load_private_keys, new_key
from mdc_core.errors import ConfigError, FormatError
from mdc_core.system.atomic_file import publish, sync

MIN_SECRET = 32
"""Minimum length of a configured secret: 128 bits even if it is hexadecimal."""

GiB = 2**30
MiB = 2**20

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]+)?|https?://\[[0-9a-fA-F:]+\](:[0-9]+)?")


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _listed(value: Any) -> Any:
    """Split text at commas. Other values pass unchanged."""
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def _origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"{origin!r} is not an origin: write scheme and host, such as https://example.org"
            )
    return origins


def _networks(proxies: tuple[str, ...]) -> tuple[str, ...]:
    for proxy in proxies:
        try:
            ip_network(proxy)
        except ValueError as error:
            raise ConfigError(
                f"{proxy!r} is not a proxy: write an address or a network, such as 10.0.0.5 or 10.0.0.0/24"
            ) from error
    return proxies


def _rate(text: str) -> str:
    try:
        if text:
            parse_rate(text)
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is not a rate: write it like 100/minute, or leave it empty for no limit"
        ) from error
    return text


def _in_data_dir(template: str) -> Any:
    """A field whose default depends on `data_dir`, which replaces `{}` in the template."""
    return Field(default_factory=lambda data: template.format(data.get("data_dir", "")))


Rate = Annotated[str, AfterValidator(_rate)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class Settings(BaseSettings):
    """Settings of an installation. Each field is `MDC_<NAME>` in the environment."""

    # Errors must not show their input: it includes the secrets.
    model_config = SettingsConfigDict(
        env_prefix="MDC_", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    data_dir: AbsolutePath = Field(default=Path("mdc-data"), validate_default=True)
    """Folder of embedded mode: database, broker, objects, secret, signing key, first admin key."""
    database_url: str = _in_data_dir("sqlite:///{}/mdc.sqlite3")
    """Database: `sqlite:///FILE` or `postgresql+psycopg://USER:PASSWORD@HOST/NAME`."""
    broker_url: str = _in_data_dir("sqla+sqlite:///{}/broker.sqlite3")
    """Celery broker, for example `redis://:PASSWORD@HOST:6379/0`."""
    broker_prefix: str = Field(default="mdc:", pattern=r"^[\x21-\x7e]{0,64}$")
    """Prefix of all Redis keys, so that several installations can share one Redis."""
    objects_url: str = _in_data_dir("file://{}/objects")
    """Object store: `file:///FOLDER`, `s3://BUCKET/PREFIX`, `gs://…`, `az://…` or `memory://`. Credentials come
    from `AWS_…`, `GOOGLE_…` or `AZURE_…`.
    """
    data_root: AbsolutePath = Field(default_factory=lambda data: Path(data.get("data_dir", ".")) / "datasets")
    """Folder of the named data sets. Missing ones are downloaded to it."""
    host: str = "127.0.0.1"
    """Address that `mdc up` listens on."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port that `mdc up` listens on."""
    secret: SecretStr | None = None
    """HMAC key for stored API keys, at least 32 characters. Generated in embedded mode. Otherwise the API needs
    it; workers do not.
    """
    signing_keys: SecretStr | None = None
    """Private JWKS: the first key signs manifests, and all are published. `python -m server.cli
    create-signing-key` prints one. Generated in embedded mode. Otherwise the API needs it; workers do not.
    """
    manifest_days: int = Field(default=30, ge=1, le=3650)
    """Days until a manifest expires and must be fetched again."""
    trusted_proxies: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_networks)
    ] = ()
    """Addresses or networks of reverse proxies, comma-separated. Only they may set the client's address."""
    downloads: Literal["proxy", "redirect"] = "proxy"
    """`proxy`: the API sends subsets. `redirect`: it redirects to a signed URL if the object store holds the same
    bytes.
    """
    cors_origins: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_origins)
    ] = ()
    """Origins whose web pages may read sets and subsets, comma-separated, for example `https://example.org`. `*`:
    any origin.
    """
    cache_bytes: int = Field(default=20 * MiB, ge=0)
    """Size of the cache of delivered ranks, per API process."""
    upload_max_bytes: int = Field(default=2 * GiB, ge=1)
    """Maximum size of an upload."""
    key_rate: Rate = "6000/minute"
    """Rate limit per API key. Requests for sets and subsets do not count, because many devices may share a key.
    Empty: no limit.
    """
    refusal_rate: Rate = "60/minute"
    """Rate of invalid API keys per client address; beyond it the response is 429. Valid keys are never refused.
    Empty: no limit.
    """
    key_jobs: int = Field(default=100, ge=1)
    """Maximum number of waiting and running jobs per API key."""
    key_streams: int = Field(default=100, ge=1)
    """Maximum number of open event streams per API key, in each API process."""
    key_upload_bytes: int = Field(default=20 * GiB, ge=0)
    """Maximum total size of the uploads of an API key."""
    upload_days: int | None = Field(default=None, ge=1, le=36500)
    """Days until an upload that no job has used is deleted. `null`: uploads stay until you delete them."""
    max_attempts: int = Field(default=5, ge=1)
    """Number of interrupted attempts after which a job fails. A regular stop of the worker does not count."""
    max_runtime_seconds: int | None = Field(default=None, ge=1)
    """Maximum running time of a job, all attempts together. A request's `max_runtime_s` may ask for less. `null`:
    only that applies.
    """
    max_expected_seconds: float = Field(default=7 * 86400, ge=0)
    """Maximum estimated time of a job on the largest live worker. Longer ones are refused with what to lower. 0:
    no limit.
    """
    lease_seconds: float = Field(default=90, gt=0)
    """Lifetime of a worker's lease on a job."""
    lease_renew_seconds: float = Field(default=15, gt=0)
    """Interval at which a worker renews its lease. Must be shorter than the lease."""
    checkpoint_seconds: float = Field(default=60, ge=0)
    """Minimum time between two checkpoints of a job."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of a job; 0: one per core. For small images, 1 is about as fast."""
    stuck_seconds: float = Field(default=4 * 3600, gt=0)
    """Time without progress after which a job's process is killed and the job requeued. An outer loop must take
    less, and so must the training of one network of a pool.
    """
    kill_grace_seconds: float = Field(default=120, ge=0)
    """Time for a stopped job to write its checkpoint before it is killed."""
    sweep_age_seconds: float = Field(default=7 * 24 * 3600, ge=0)
    """Minimum age of an unreferenced object before it is deleted."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lease_renew_seconds >= self.lease_seconds:
            raise ConfigError(
                f"MDC_LEASE_RENEW_SECONDS is {self.lease_renew_seconds:g}, but the lease ends after "
                f"{self.lease_seconds:g} s: set it to at most half of that"
            )
        if self.secret is not None and len(self.secret.get_secret_value()) < MIN_SECRET:
            raise ConfigError(
                f"MDC_SECRET has {len(self.secret.get_secret_value())} characters: use at least "
                f"{MIN_SECRET}, for example the output of: openssl rand -hex 32"
            )
        if self.signing_keys is not None:
            _signing_keys("MDC_SIGNING_KEYS", self.signing_keys.get_secret_value())
        return self

    @property
    def embedded(self) -> bool:
        """Whether everything is local: SQLite and a folder of objects."""
        return self.database_url.startswith("sqlite") and self.objects_url.startswith("file:")

    @property
    def uploads_dir(self) -> Path:
        """Folder of unfinished uploads."""
        return self.data_dir / "uploads"

    def secret_key(self) -> bytes:
        """The HMAC key: `secret`, or in embedded mode a generated one in `data_dir`/secret (mode 0600).

        Raises `ConfigError` if it is missing outside embedded mode. Only the API needs it.
        """
        if self.secret is not None:
            return self.secret.get_secret_value().encode()
        if not self.embedded:
            raise ConfigError(
                "MDC_SECRET is not set: with a database server or a remote object store, set it to at least "
                f"{MIN_SECRET} characters, for example the output of: openssl rand -hex 32"
            )
        return _stored_secret(self.data_dir / "secret")

    def manifest_keys(self) -> tuple[PrivateKey, ...]:
        """The signing keys of manifests: the first one signs, all are published.

        They are `signing_keys`, or in embedded mode a generated one in `data_dir`/signing.jwks (mode 0600).
        Raises `ConfigError` if they are missing outside embedded mode. Only the API needs them.
        """
        if self.signing_keys is not None:
            return _signing_keys("MDC_SIGNING_KEYS", self.signing_keys.get_secret_value())
        if not self.embedded:
            raise ConfigError(
                "MDC_SIGNING_KEYS is not set: with a database server or a remote object store, set it to the "
                "output of: python -m server.cli create-signing-key"
            )
        path = self.data_dir / "signing.jwks"
        return _signing_keys(
            str(path), _read_or_create(path, lambda: dump_private_keys([new_key()])).decode()
        )


def _signing_keys(source: str, text: str) -> tuple[PrivateKey, ...]:
    try:
        return load_private_keys(text)
    except FormatError as error:
        raise ConfigError(f"{source} cannot be used: {error}") from None


def _read_or_create(path: Path, make: Callable[[], str]) -> bytes:
    """The content of `path`, created if missing. Processes that start together get the same content."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, make(), replace=False)
    return path.read_bytes().strip()


def _stored_secret(path: Path) -> bytes:
    secret = _read_or_create(path, lambda: secrets.token_hex(32))
    if len(secret) < MIN_SECRET:
        raise ConfigError(
            f"{path} holds {len(secret)} characters, and a secret at least {MIN_SECRET}: restore the file (a new "
            "secret makes every API key invalid)"
        )
    return secret


def wrong_settings(error: ValidationError) -> str:
    """The variables that `Settings()` refused, and why."""
    return faults(error, lambda path: f"MDC_{path.replace('.', '_').upper()}")


def write_private(path: Path, text: str, *, replace: bool) -> None:
    """Write `text` and a newline to `path` atomically, with mode 0600.

    If `replace` is false, an existing file stays as it is.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mkstemp sets mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode() + b"\n")
            sync(file)
        if replace:
            publish(temporary, path)
            return
        with suppress(FileExistsError):
            os.link(temporary, path)  # unlike a rename, fails if another process was first
    finally:
        temporary.unlink(missing_ok=True)
