"""docker-compose.yml and Dockerfile agree with the package that they install."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from server.settings import Settings
from tests.services import free_port, missing, process

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]
VARIABLES = re.findall(r"\$\{(\w+)([^}]*)\}", COMPOSE)
REQUIRED = sorted({name for name, rule in VARIABLES if rule.startswith(":?")})


def test_every_setting_exists() -> None:
    given = set(re.findall(r"^ +(MDC_\w+):", COMPOSE, re.MULTILINE))
    assert given
    assert given <= {f"MDC_{name.upper()}" for name in Settings.model_fields}


def test_no_secret_has_a_default() -> None:
    assert REQUIRED == [
        "MDC_SECRET",
        "MDC_SIGNING_KEYS",
        "POSTGRES_PASSWORD",
        "REDIS_PASSWORD",
        "S3_ACCESS_KEY",
        "S3_SECRET_KEY",
    ]
    optional = {name for name, rule in VARIABLES if not rule.startswith(":?")}
    assert optional == {"MDC_PUBLISH", "MDC_WORKER_MEMORY"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert service["pids_limit"] > 0
    assert service["mem_limit"]
    assert "stores" in service["networks"]
    assert ("outside" in service["networks"]) == (name in ("api", "worker"))


def test_the_stores_reach_nobody_outside() -> None:
    assert yaml.safe_load(COMPOSE)["networks"]["stores"] == {"internal": True}


def test_no_secret_is_in_a_command_line() -> None:
    for service in SERVICES.values():
        words = " ".join([*service.get("entrypoint", []), *service.get("command", [])])
        assert [name for name in REQUIRED if f"${{{name}" in words] == []


def test_redis_gets_its_password_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service's own command, with other paths and another port."""
    if shutil.which("redis-server") is None:
        missing("Redis", "redis-server is not installed")
    service, port = SERVICES["redis"], free_port()
    script = service["command"][0].replace("$$", "$").replace("/data/", f"{tmp_path}/").rstrip()
    monkeypatch.setenv("REDISCLI_AUTH", "hunter2")
    client = redis.Redis(port=port, password="hunter2", socket_connect_timeout=2)

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False

    command = [*service["entrypoint"], f"{script} --port {port} --bind 127.0.0.1 --dir {tmp_path}"]
    with process(command, answers) as started:
        assert b"hunter2" not in Path(f"/proc/{started.pid}/cmdline").read_bytes()
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
    client.close()


LOCKS = {"api": "server", "worker": "worker"}
"""The extra that each image has."""
DEVELOPMENT = "requirements-dev.txt"
"""Locks what `make` installs."""


def lock_of(image: str) -> str:
    return f"docker/requirements-{image}.txt"


def locked(path: str) -> dict[str, str]:
    """Names and versions in a lock file."""
    text = (ROOT / path).read_text()
    return {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
    }


def needed(extra: str) -> list[Requirement]:
    """What an extra asks for, with those that it includes."""
    found = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
    for line in PROJECT["project"]["optional-dependencies"][extra]:
        need = Requirement(line)
        inner = need.name == PROJECT["project"]["name"]
        found += [part for other in need.extras for part in needed(other)] if inner else [need]
    return found


@pytest.mark.parametrize("image", LOCKS)
def test_images_install_what_is_locked(image: str) -> None:
    assert f"--require-hashes --requirement {lock_of(image)}" in DOCKERFILE


@pytest.mark.parametrize("path", [*map(lock_of, LOCKS), DEVELOPMENT])
def test_what_is_locked_has_hashes(path: str) -> None:
    text = (ROOT / path).read_text()
    assert "://" not in text
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(locked(path)) > 20
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize(
    ("path", "extra"),
    [
        *((lock_of(image), extra) for image, extra in LOCKS.items()),
        *((DEVELOPMENT, extra) for extra in ("worker", "device", "dev")),
    ],
)
def test_the_lock_has_every_dependency_in_a_version_that_is_allowed(path: str, extra: str) -> None:
    """`make lock` writes it anew."""
    versions = locked(path)
    for need in needed(extra):
        assert need.specifier.contains(versions[canonicalize_name(need.name)]), f"{need}: run `make lock`"


def test_images_of_others_are_pinned() -> None:
    images = re.findall(r"^ +image: (\S+)", COMPOSE, re.MULTILINE)
    others = [image for image in images if not image.startswith("multisize-condensation-")]
    assert {image.partition(":")[0] for image in others} == {"postgres", "redis", "chrislusf/seaweedfs"}
    bases = re.findall(r"^FROM (\S+:\S+) AS", DOCKERFILE, re.MULTILINE)
    assert len(bases) == 1
    assert all(re.fullmatch(r"[^:]+:\d[\w.-]*@sha256:[0-9a-f]{64}", image) for image in others + bases)


def test_packages_are_installed_from_the_locks_alone() -> None:
    assert len(re.findall(r"pip install", DOCKERFILE)) == len(LOCKS)


def test_targets_are_stages_without_root() -> None:
    stages = dict(re.findall(r"^FROM base AS (\w+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
    assert set(re.findall(r"target: (\w+)", COMPOSE)) == set(stages)
    assert all("\nUSER mdc\n" in stage for stage in stages.values())


def test_the_api_gets_no_torch() -> None:
    assert "torch" in locked(lock_of("worker"))
    assert not {"torch", "triton"} & set(locked(lock_of("api")))


def test_copied_paths_exist_and_are_not_ignored() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert [source for source in sorted(copied) if not (ROOT / source).exists()] == []
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert {source.partition("/")[0] for source in copied} == set(allowed)
    packages = {
        name.removesuffix("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    assert packages <= copied


def test_compose_reads_the_file() -> None:
    described = json.loads(_compose(dict.fromkeys(REQUIRED, "a" * 64)).stdout)
    assert set(described["services"]) == {
        "api", "worker", "migrations", "postgres", "redis", "objects", "bucket"
    }  # fmt: skip
    published = {name for name, service in described["services"].items() if service.get("ports")}
    assert published == {"api"}
    assert described["services"]["api"]["ports"][0]["host_ip"] == "127.0.0.1"


@pytest.mark.parametrize("missing", REQUIRED)
def test_compose_names_a_missing_secret(missing: str) -> None:
    outcome = _compose({name: "a" * 64 for name in REQUIRED if name != missing})
    assert outcome.returncode != 0
    assert missing in outcome.stderr


def _compose(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`docker compose config` with these variables and no .env file; skips where there is no compose."""
    docker = shutil.which("docker")
    if (
        docker is None
        or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("docker compose is not installed")
    command = [docker, "compose", "--env-file", os.devnull, "--file", str(ROOT / "docker-compose.yml")]
    return subprocess.run(
        [*command, "config", "--format", "json"],
        env={name: value for name, value in os.environ.items() if name not in REQUIRED} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
