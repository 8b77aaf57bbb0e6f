"""Turn option values into what the commands work with: settings, a device, a data set's path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from mdc_core.config.presets import NAMED, merge
from mdc_core.config.settings import faults
from mdc_core.errors import ConfigError
from mdc_core.system.malloc import keep_freed_memory

T = TypeVar("T")


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """`NAME=VALUE` pairs as a mapping. Values are JSON if they parse, else text; `network.width` is a nested name."""
    values: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(
                f"--set {setting!r} has no '=': write it as NAME=VALUE, such as class_wise=true"
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        outer, dot, inner = name.partition(".")
        values = merge(values, {outer: {inner: value}} if dot else {name: value})
    return values


def validated(make: Callable[[], T]) -> T:
    """The result of `make`. If pydantic refuses settings, one `ConfigError` names every invalid field."""
    try:
        return make()
    except ValidationError as error:
        raise ConfigError(faults(error)) from error


def select_device(device: str) -> str:
    """The torch device to compute on; also prepares this process. `ConfigError` if torch cannot use it."""
    import torch

    keep_freed_memory()

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {device!r} cannot be used ({str(error).splitlines()[0]}): try --device cpu"
        ) from error
    return device


def portable_source(dataset: str) -> str:
    """A data set's name unchanged, or its absolute path."""
    return dataset if dataset in NAMED else str(Path(dataset).resolve())
