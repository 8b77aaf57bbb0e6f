"""What `pip install '.[device]'` brings into an empty environment, and that it is enough."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mdc_device import api
from tests.services import missing

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
DIRECT = ("httpx", "numpy", "cryptography")
OURS = (
    "mdc_core",
    "mdc_device",
    "mdc_cli",
    "server",
    "worker",
    "migrations",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)


def closure(names: tuple[str, ...]) -> set[str]:
    """These distributions and all that they need here, as their own metadata tell."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found.add(name)
            needs = (Requirement(text) for text in metadata.requires(name) or ())
            waiting += [
                need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})
            ]
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with nothing but what the extra `device` asks for."""
    folder = tmp_path_factory.mktemp("bare")
    source = folder / "source"  # a build leaves files behind
    for name in OURS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True, timeout=120)
    options = ("--quiet", "--no-compile", "--retries", "1", "--timeout", "15")
    done = pip(folder / "venv/bin/python", "install", *options, f"{source}[device]")
    if done.returncode and ("Could not find a version" in done.stderr or "onnection" in done.stderr):
        missing("a package index", done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return folder / "venv/bin"


def pip(python: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """The pip of this interpreter at work in the environment of another one."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, *words]
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=300, env=clean()
    )


def clean() -> dict[str, str]:
    """The environment without this checkout on the path."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def ran(folder: Path, *command: object, code: int = 0) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=60, cwd=folder, env=clean()
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_it_brings_three_packages_and_what_they_need(bare: Path, tmp_path: Path) -> None:
    listed = json.loads(pip(bare / "python", "list", "--format", "json").stdout)
    names = {canonicalize_name(entry["name"]) for entry in listed} - {"multisize-condensation"}
    assert names == closure(DIRECT)
    assert not {"torch", "pydantic", "fastapi", "uvicorn", "sqlalchemy", "pillow", "typer"} & names


def test_it_works_on_a_real_file(bare: Path, device: Any, tmp_path: Path) -> None:
    file, command = tmp_path / "toy.mdc", bare / "mdc-device"
    assert "exit codes" in ran(tmp_path, command, "--help")
    ran(tmp_path, command, "fetch", device.url, "toy", "--to", file, "--k", 3)
    assert file.read_bytes() == device.subset(3)
    assert "all digests match" in ran(tmp_path, command, "verify", file)
    planned = ran(
        tmp_path, command, "plan", "--manifest", f"{file}.manifest.json", "--storage", "5k", "--json"
    )
    assert (
        json.loads(planned)["k"]
        == api.plan(manifest=f"{file}.manifest.json", budget=api.Budget(storage_bytes=5000))[1].k
    )
    said = ran(tmp_path, command, "train", file, code=2)
    assert "pip install 'multisize-condensation[core]'" in said
    shapes = (
        "from mdc_device.decode import open_subset as o; import sys; print(o(sys.argv[1]).images().shape)"
    )
    assert ran(tmp_path, bare / "python", "-c", shapes, file).strip() == "(36, 1, 9, 9)"
