"""Write the reference pages that come from the code: `python -m tools.reference`."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Literal, get_args, get_origin

import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import mdc_cli.main
import server.cli
from mdc_core.condensation import condense
from mdc_core.config.settings import CondenseConfig, EvaluateConfig
from mdc_core.delivery import budget, manifest, rankmajor, signing
from mdc_core.training import evaluate
from mdc_device import api, decode
from mdc_device.arguments import parser
from server.settings import Settings

PAGES = Path(__file__).resolve().parent.parent / "docs/reference"
MODULES: tuple[ModuleType, ...] = (api, decode, condense, evaluate, rankmajor, manifest, budget, signing)
LARGE = 1_000_000
"""From here an upper limit only keeps arithmetic from overflow, and is not shown."""
NOTE = "This page is generated from the code by `python -m tools.reference`.\n"


def cli_page() -> str:
    """Every command with its arguments and options, as Markdown."""
    lines = ["# Commands", "", NOTE]
    for name, app in (("mdc", mdc_cli.main.app), ("python -m server.cli", server.cli.app)):
        lines += [f"## `{name}`", ""]
        for command, found in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
            lines += [f"### `{name} {command}`", "", _plain(found.help or ""), ""]
            rows = [
                (", ".join(f"`{word}`" for word in (*one.opts, *one.secondary_opts)), _plain(one.help or ""))
                for one in found.params
                if one.name != "help"
            ]
            lines += _table(rows)
    lines += ["## `mdc-device`", ""]
    choices = next(one for one in parser()._actions if isinstance(one, argparse._SubParsersAction))
    summaries = {one.dest: one.help or "" for one in choices._choices_actions}
    for command, sub in choices.choices.items():
        lines += [f"### `mdc-device {command}`", "", _plain(summaries.get(command, "")), ""]
        rows = [
            (", ".join(f"`{word}`" for word in one.option_strings or [one.dest]), _plain(one.help or ""))
            for one in sub._actions
            if one.dest != "help"
        ]
        lines += _table(rows)
    return "\n".join(lines).rstrip() + "\n"


def python_page() -> str:
    """The public functions and classes of `MODULES`, as Markdown."""
    lines = ["# Python API", "", NOTE]
    for module in MODULES:
        lines += [f"## `{module.__name__}`", "", inspect.cleandoc(module.__doc__ or "").split("\n\n")[0], ""]
        for name, value in _public(module):
            signature = _signature(value) if inspect.isfunction(value) else ""
            lines += [f"### `{module.__name__.rpartition('.')[2]}.{name}`", ""]
            if signature:
                lines += ["```python", signature, "```", ""]
            lines += ["```text", inspect.cleandoc(value.__doc__ or ""), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def settings_page() -> str:
    """The page of settings, with its three tables written anew between their marks."""
    page = (PAGES / "settings.md").read_text()
    for model, prefix in ((CondenseConfig, ""), (EvaluateConfig, ""), (Settings, "MDC_")):
        rows = [
            f"| `{prefix}{name.upper() if prefix else name}` | {_default(name, field)} | {_values(field)} "
            f"| {_plain(field.description or '')} |"
            for name, field in _fields(model)
        ]
        table = "\n".join(["| name | default | values | |", "|-|-|-|-|", *rows, ""])
        before, begin, rest = page.partition(f"<!-- table of {model.__name__}, generated -->\n")
        end, after = rest.partition("<!-- end of table -->")[1:]
        page = before + begin + table + end + after
    return page


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field; those of a model inside it with a dotted name, as `--set` takes them."""
    for name, field in model.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _default(name: str, field: FieldInfo) -> str:
    """As JSON without quotes. A path below the data folder names that folder's variable."""
    value = field.default
    if value is PydanticUndefined:
        value = field.default_factory({"data_dir": "$MDC_DATA_DIR"})  # type: ignore[call-arg, misc]
    text = str(value) if isinstance(value, str | Path) else json.dumps(value, separators=(",", ":"))
    shown = f"`{text}`"
    if name.endswith("_bytes"):
        shown += f" ({value // 2**30} GiB)" if value % 2**30 == 0 else f" ({value // 2**20} MiB)"
    if name.endswith("_seconds") and value and value % 86400 == 0:
        shown += f" ({value // 86400} days)"
    return shown


def _values(field: FieldInfo) -> str:
    """The choices or the range of a number; empty where the description says it."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    bounds: dict[str, Any] = {
        name: getattr(limit, name)
        for limit in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(limit, name)
    }
    low = f"≥ {bounds['ge']:g}" if "ge" in bounds else f"> {bounds['gt']:g}" if "gt" in bounds else ""
    high = f"≤ {bounds['le']:g}" if bounds.get("le", LARGE) < LARGE else ""
    high = f"< {bounds['lt']:g}" if bounds.get("lt", LARGE) < LARGE else high
    return ", ".join(part for part in (low, high) if part)


def _public(module: ModuleType) -> Iterator[tuple[str, type | FunctionType]]:
    """What the module itself defines, in the order of the source."""
    for name, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__
        if own and not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
            yield name, value


def _signature(function: object) -> str:
    """As the source has it, one parameter a line, so that no release of Python writes it in another way."""
    definition = ast.parse(inspect.getsource(function)).body[0]  # type: ignore[arg-type]
    assert isinstance(definition, ast.FunctionDef)
    every = definition.args
    plain = [*every.posonlyargs, *every.args]
    defaults = [None] * (len(plain) - len(every.defaults)) + [*every.defaults]
    lines = [_parameter(one, default) for one, default in zip(plain, defaults, strict=True)]
    lines += ["*"] if every.kwonlyargs else []
    lines += [
        _parameter(one, default) for one, default in zip(every.kwonlyargs, every.kw_defaults, strict=True)
    ]
    returns = ast.unparse(definition.returns) if definition.returns else "None"
    return f"def {definition.name}(\n" + "".join(f"    {line},\n" for line in lines) + f") -> {returns}"


def _parameter(parameter: ast.arg, default: ast.expr | None) -> str:
    annotation = f": {ast.unparse(parameter.annotation)}" if parameter.annotation else ""
    return f"{parameter.arg}{annotation}" + (f" = {ast.unparse(default)}" if default else "")


def _table(rows: list[tuple[str, str]]) -> list[str]:
    return ["| option | |", "|-|-|", *(f"| {words} | {text} |" for words, text in rows), ""] if rows else []


def _plain(text: str) -> str:
    """On one line, with what a table and HTML would take for themselves written so that they do not."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("%%", "%")


def pages() -> dict[Path, str]:
    """The generated pages: path and content."""
    return {
        PAGES / "cli.md": cli_page(),
        PAGES / "python-api.md": python_page(),
        PAGES / "settings.md": settings_page(),
    }


if __name__ == "__main__":
    for path, content in pages().items():
        path.write_text(content)
