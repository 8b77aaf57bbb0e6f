"""The command line of `mdc-device`: its options, and how their values are parsed."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mdc_core import __version__
from mdc_core.delivery.budget import Budget, BudgetField, budget_fields
from mdc_core.errors import ConfigError

EXIT_CODES = """exit codes:
  0    success
  1    this device cannot: no space, no permission, no such file
  2    usage error: an unknown option, an invalid value, a k that the set does not have
  3    the server cannot be reached, or failed; fetched data are kept, run the same command again
  4    the server refused: no key or no permission, no such set
  5    not trusted: wrong digests, an unknown format, or a manifest that has expired, was altered,
       is older than the one seen, or is not signed by the server's keys
  6    no subset fits the budget; the message names the limit and the least that would fit
  7    busy: another process uses the file; nothing was done
  130  interrupted; run the same command again to resume

amounts: 64000, 64k or 64kB (thousands: k M G T), 64Ki or 64KiB (1024s: Ki Mi Gi Ti), 1.5G, 2e9
"""

_AMOUNT = re.compile(r"(?P<number>[0-9.]+(?:e[+-]?[0-9]+)?)\s*(?P<prefix>[kmgt]i?)?b?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parser() -> argparse.ArgumentParser:
    """The argument parser; its help lists the exit codes."""
    top = argparse.ArgumentParser(
        prog="mdc-device",
        description="Fetch as much of a condensed data set as fits this device's budget, and verify it.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    fetch = _command(
        commands, "fetch", "fetch a subset and verify it; an interrupted fetch resumes where it stopped"
    )
    _add_set(fetch)
    _add_access(fetch)
    fetch.add_argument("--to", required=True, metavar="FILE", help="file to write the subset to")
    _add_budget(fetch)

    plan = _command(commands, "plan", "show which subset fits a budget, without fetching it")
    _add_set(plan, optional=True)
    _add_access(plan)
    plan.add_argument(
        "--manifest", metavar="FILE", help="a saved manifest, instead of URL and SET; needs no connection"
    )
    _add_budget(plan, with_have=True)

    profile = _command(commands, "profile", "measure this device and print a budget for --budget")
    profile.add_argument("url", metavar="URL", nargs="?", help="a server to measure the bandwidth to")
    profile.add_argument(
        "set", metavar="SET", nargs="?", help="a set on that server, of which some ranks are fetched"
    )
    profile.add_argument(
        "--folder", default=".", metavar="DIR", help="folder that the subset will be stored in"
    )
    profile.add_argument(
        "--seconds", type=_argument, default=0.5, metavar="S", help="duration of each measurement"
    )
    _add_access(profile)

    _add_file_commands(commands)

    train = _command(commands, "train", "train the manifest's network on a fetched file (needs torch)")
    train.add_argument("file", metavar="FILE", help="a fetched subset")
    train.add_argument(
        "--to", metavar="FILE", help="file to write the weights to; default: FILE.weights.safetensors"
    )
    train.add_argument(
        "--test", metavar="DATA", help="test on the test images of a named data set, folder, zip or npz"
    )
    train.add_argument(
        "--data-root", default="mdc-data/datasets", metavar="DIR", help="folder of the named data sets"
    )
    train.add_argument("--device", default="cpu", help="device to train on: cpu (the default), cuda, mps, …")
    train.add_argument(
        "--seed", type=_count, default=0, metavar="N", help="random seed for weights, order and augmentation"
    )
    _add_budget(train)
    return top


def budget(args: argparse.Namespace) -> Budget:
    """The budget from `--budget FILE`, overridden by the options. Invalid values raise `ConfigError`."""
    options = {name: getattr(args, name, None) for name in budget_fields()}
    stated = {name: value for name, value in options.items() if value is not None}
    return Budget.from_mapping({**(_read_budget(args.budget) if args.budget else {}), **stated})


def option_of(one: BudgetField) -> str:
    """The option for a budget field: its name without the unit, such as `--storage` for `storage_bytes`."""
    return "--" + re.sub("_(bytes|bps|k)$", "", one.name).replace("_", "-")


def _read_budget(path: str) -> dict[str, Any]:
    hint = "give a JSON object, as `mdc-device profile` prints it"
    try:
        document = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError
        raise ConfigError(f"{path} is no budget ({error}): {hint}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} is no budget: {hint}")
    return document


def amount(text: str) -> float:
    """Parse a number with an optional unit prefix: 64k, 10MB, 1GiB. Anything else raises `ConfigError`."""
    match = _AMOUNT.fullmatch(text.strip())
    try:
        number = float(match["number"]) if match else math.nan
    except ValueError:
        number = math.nan
    if match is None or not math.isfinite(number):
        raise ConfigError(f"{text!r} is not an amount: give a number such as 64000, 64k, 10MB or 1GiB")
    prefix = (match["prefix"] or "").lower()
    return number * (1024.0 if prefix.endswith("i") else 1000.0) ** _POWER[prefix.removesuffix("i")]


def _add_file_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands that work on a fetched file."""
    grow = _command(
        commands, "grow", "enlarge a fetched file to a larger subset, fetching only the missing ranks"
    )
    _add_resizing(grow)
    _add_access(grow)
    _add_resizing(
        _command(commands, "shrink", "cut a fetched file down to a smaller subset; needs no connection")
    )

    status = _command(commands, "status", "show what a fetched file holds and whether it is intact")
    status.add_argument("file", metavar="FILE", help="a fetched subset")

    verify = _command(commands, "verify", "check a fetched file against its manifest")
    verify.add_argument("file", metavar="FILE", help="a fetched subset")
    only = verify.add_mutually_exclusive_group()
    only.add_argument("--manifest", metavar="FILE", help="its manifest; default: FILE.manifest.json")
    only.add_argument("--repair", action="store_true", help="repair the file, fetching only damaged ranks")
    _add_access(verify)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    return command


def _add_set(command: argparse.ArgumentParser, *, optional: bool = False) -> None:
    count = "?" if optional else None
    command.add_argument(
        "url", metavar="URL", nargs=count, help="URL of the server, such as https://condense.example"
    )
    command.add_argument("set", metavar="SET", nargs=count, help="name of the set")
    command.add_argument(
        "--k",
        type=_size,
        default=None,
        metavar="N|auto",
        help="images per class: N, or fewer if the budget requires; auto (the default): the best that fits the budget",
    )


def _add_resizing(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", metavar="FILE", help="a fetched subset")
    command.add_argument(
        "--k", type=_count, required=True, metavar="N", help="new number of images per class"
    )


def _add_access(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("connection")
    group.add_argument(
        "--key",
        help="API key; default: $MDC_KEY, or mdc-data/admin.key for a server on this machine",
    )
    group.add_argument(
        "--keyset",
        metavar="FILE",
        help="the server's key set, from a source you trust; default: the keys seen at the first fetch",
    )
    group.add_argument(
        "--unsigned",
        action="store_true",
        help="accept a server that does not sign; a server whose keys are known must still sign",
    )
    group.add_argument(
        "--timeout",
        type=_argument,
        default=30.0,
        metavar="S",
        help="seconds without data after which the connection counts as broken (default 30)",
    )
    group.add_argument(
        "--retries",
        type=_count,
        default=4,
        metavar="N",
        help="retries after a failure, with growing waits; a retry that receives data does not count (default 4)",
    )


def _add_budget(command: argparse.ArgumentParser, *, with_have: bool = False) -> None:
    """An option for every budget field. Only `plan` takes `have_k`: other commands know what the file holds."""
    group = command.add_argument_group(
        "budget", "what this device can spend; an omitted option means no limit"
    )
    group.add_argument(
        "--budget", metavar="FILE", help="read the budget from JSON; the options below override it"
    )
    for one in budget_fields().values():
        if one.name == "have_k" and not with_have:
            continue
        text = one.description[0].lower() + one.description[1:].removesuffix(".")
        if one.kind.json_type == "boolean":
            group.add_argument(option_of(one), dest=one.name, action="store_true", default=None, help=text)
        else:
            group.add_argument(option_of(one), dest=one.name, type=_type_of(one), metavar=one.unit, help=text)


def _type_of(one: BudgetField) -> Callable[[str], object]:
    """What parses the option of a budget field."""
    if not one.kind.is_number:
        return str
    if one.name == "have_k":
        return _count
    return _argument if one.kind.most > 1 else float  # a fraction takes no prefix


def _argument(text: str) -> float:
    try:
        return amount(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _size(text: str) -> int | None:
    return None if text == "auto" else _count(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)
