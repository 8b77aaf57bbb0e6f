"""The files of a local run: the set, the record of what it was made from, and the checkpoint."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from mdc_core.errors import FormatError, MdcError
from mdc_core.system.atomic_file import write_atomically

RUN_FORMAT = "mdc-run/1"
SET_SUFFIX = ".safetensors"


def run_path(set_path: Path) -> Path:
    """The record beside the set, as JSON: data set and configuration."""
    return beside(set_path, ".json")


def checkpoint_path(set_path: Path) -> Path:
    """The latest checkpoint of a run."""
    return beside(set_path, ".checkpoint")


def beside(set_path: Path, ending: str) -> Path:
    """The file beside a set with another suffix. Only the suffix of sets is replaced: `a.v1` stays `a.v1`."""
    return set_path.with_name(set_path.name.removesuffix(SET_SUFFIX) + ending)


def check_target(set_path: Path) -> Path:
    """Return the path; raise `MdcError` before hours of work if no set can be written there."""
    if set_path.suffix != SET_SUFFIX:
        raise MdcError(f"{set_path} cannot name a set: its name must end in {SET_SUFFIX}")
    try:
        set_path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=set_path.parent):
            pass
    except OSError as error:
        raise MdcError(
            f"cannot write to {set_path.parent} ({error.strerror}): choose another folder with --out"
        ) from error
    return set_path


def write(path: Path, data: bytes | str) -> None:
    """Write a file atomically, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data.encode() if isinstance(data, str) else data)


def read(path: Path) -> bytes:
    """Read a file; raises an `MdcError` that names it if it is missing or unreadable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise MdcError(f"cannot read {path} ({error.strerror}): check the path") from error


def write_run(set_path: Path, run: dict[str, Any]) -> None:
    """Record what the set was made from."""
    write(run_path(set_path), json.dumps({"format": RUN_FORMAT, **run}, indent=2))


def read_run(set_path: Path) -> dict[str, Any]:
    """Read the record of `write_run`; empty if there is none. Raises `FormatError` if the file is something else."""
    path = run_path(set_path)
    if not path.exists():
        return {}
    try:
        run = json.loads(read(path))
    except ValueError as error:
        raise FormatError(
            f"{path} is not JSON ({error}): move it away, and name the data with --data"
        ) from error
    if not isinstance(run, dict) or run.get("format") != RUN_FORMAT:
        raise FormatError(f"{path} is not a {RUN_FORMAT} file: move it away, and name the data with --data")
    return run
