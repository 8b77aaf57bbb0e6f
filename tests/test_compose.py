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

from server.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
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
    assert {name for name, rule in VARIABLES if not rule.startswith(":?")} == {"MDC_PUBLISH"}


def test_images_of_others_are_pinned() -> None:
    images = re.findall(r"^ +image: (\S+)", COMPOSE, re.MULTILINE)
    others = [image for image in images if not image.startswith("multisize-condensation-")]
    assert {image.partition(":")[0] for image in others} == {"postgres", "redis", "chrislusf/seaweedfs"}
    assert all(re.fullmatch(r"[^:]+:\d[\w.-]*", image) for image in others)


def test_targets_are_stages_without_root() -> None:
    stages = dict(re.findall(r"^FROM base AS (\w+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
    assert set(re.findall(r"target: (\w+)", COMPOSE)) == set(stages)
    assert all("\nUSER mdc\n" in stage for stage in stages.values())


def test_extras_exist_and_the_api_gets_no_torch() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert re.findall(r"pip install '\.\[(\w+)\]'", DOCKERFILE) == ["server", "worker"]
    assert {"server", "worker"} <= set(extras)
    assert not [need for need in extras["server"] if need.startswith(("torch", "multisize"))]


def test_copied_paths_exist_and_are_not_ignored() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert [source for source in sorted(copied) if not (ROOT / source).exists()] == []
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert copied == set(allowed)
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
