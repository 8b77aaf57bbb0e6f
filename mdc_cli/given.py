"""What a command is given, made ready: settings, a device, a data set that is found again from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from mdc_core.config.presets import NAMED, merge
from mdc_core.config.settings import nearest_setting
from mdc_core.errors import ConfigError
from mdc_core.malloc import keep_freed_memory

T = TypeVar("T")


def parsed(settings: list[str] | None) -> dict[str, Any]:
    """`NAME=VALUE` pairs as a mapping; values are JSON where they can be, else text; dots reach into the network."""
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


def configured(make: Callable[[], T]) -> T:
    """What `make` makes of settings; pydantic's findings become one `ConfigError` that names every field."""
    try:
        return make()
    except ValidationError as error:
        found = (
            "{}: {}".format(".".join(map(str, item["loc"])) or "settings", _told(item))
            for item in error.errors()
        )
        raise ConfigError("; ".join(found)) from error


def _told(item: Any) -> str:
    """What pydantic found; of a name that is none, which one is near it."""
    nearest = nearest_setting(str(item["loc"][-1])) if item["type"] == "extra_forbidden" else None
    return str(item["msg"]) + (f": did you mean {nearest}?" if nearest else "")


def chosen_device(device: str) -> str:
    """The device by name, and this process made ready to compute; `ConfigError` when torch does not know it."""
    import torch

    keep_freed_memory()

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def portable(dataset: str) -> str:
    """A named data set as it is, a path made absolute."""
    return dataset if dataset in NAMED else str(Path(dataset).resolve())
