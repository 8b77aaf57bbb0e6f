"""The command line of `mdc-device`: what can be said, and what it means."""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

from mdc_core import __version__
from mdc_core.delivery.budget import Budget
from mdc_core.errors import ConfigError

EXIT_CODES = """exit codes:
  0    done
  1    this device cannot: no space, no permission, no such file
  2    wrong use: an unknown option, an impossible value, a k that the set does not have
  3    the server cannot be reached, or failed; what was fetched is kept, run the same command again
  4    the server refused: no key or no permission, no such set
  5    not to be trusted: wrong digests, an unknown format, a manifest that is expired, altered,
       older than the one seen, or not signed by the keys of the server
  6    the budget is too small for any subset; the message names the limit and what would do
  7    busy: another process is at the file; nothing was done
  130  interrupted; run the same command again to go on

amounts: 64000, 64k or 64kB (thousands: k M G T), 64Ki or 64KiB (1024s: Ki Mi Gi Ti), 1.5G, 2e9
"""

_AMOUNT = re.compile(r"(?P<number>[0-9.]+(?:e[+-]?[0-9]+)?)\s*(?P<prefix>[kmgt]i?)?b?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

# Budget field, its option, what an unset value means to the user.
_LIMITS = (
    (
        "memory_bytes",
        "--memory",
        "BYTES",
        "memory for the training, besides some 550 MB that its libraries take",
    ),
    ("storage_bytes", "--storage", "BYTES", "room for the file"),
    ("transfer_bytes", "--transfer", "BYTES", "bytes that may be fetched"),
    ("bandwidth_bps", "--bandwidth", "BIT/S", "bits per second of the connection"),
    ("seconds", "--seconds", "S", "deadline for fetching and training"),
    ("flops", "--flops", "FLOP/S", "sustained operations per second of this device"),
    ("joules", "--joules", "J", "energy for fetching and training"),
    ("watts", "--watts", "W", "power that this device draws meanwhile"),
    ("epochs", "--epochs", "N", "epochs of the training, if not those of the manifest"),
    ("batch_size", "--batch-size", "N", "images per step, if not those of the manifest"),
)


def parser() -> argparse.ArgumentParser:
    """The parser; its help lists the exit codes."""
    top = argparse.ArgumentParser(
        prog="mdc-device",
        description="Fetch the part of a condensed data set that this device affords, and verify it.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    fetch = _command(
        commands, "fetch", "fetch a subset, verified; an interrupted fetch goes on where it ended"
    )
    _add_set(fetch)
    _add_access(fetch)
    fetch.add_argument("--to", required=True, metavar="FILE", help="where to put the subset")
    _add_budget(fetch)

    plan = _command(commands, "plan", "show which subset a budget affords, and fetch nothing")
    _add_set(plan, optional=True)
    _add_access(plan)
    plan.add_argument(
        "--manifest", metavar="FILE", help="a manifest that was kept, in place of URL and SET: no connection"
    )
    _add_budget(plan)
    plan.add_argument(
        "--have", type=_count, default=0, metavar="K", help="ranks that this device already has"
    )

    profile = _command(commands, "profile", "measure what this device can spend, as a budget for --budget")
    profile.add_argument("url", metavar="URL", nargs="?", help="a server, to measure the bandwidth to it")
    profile.add_argument("set", metavar="SET", nargs="?", help="name of a set, ranks of which are fetched")
    profile.add_argument("--folder", default=".", metavar="DIR", help="where the subset is to be")
    profile.add_argument("--seconds", type=_argument, default=0.5, metavar="S", help="for each measurement")
    _add_access(profile)

    _add_file_commands(commands)

    train = _command(commands, "train", "train the network of the manifest on a fetched file (needs torch)")
    train.add_argument("file", metavar="FILE", help="a fetched subset")
    train.add_argument("--to", metavar="FILE", help="the weights; default: FILE.weights.safetensors")
    train.add_argument("--test", metavar="DATA", help="a named data set, folder, zip or npz with test images")
    train.add_argument(
        "--data-root", default="mdc-data/datasets", metavar="DIR", help="where named data sets are kept"
    )
    train.add_argument("--device", default="cpu", help="cpu (the default), cuda, mps …")
    train.add_argument(
        "--seed", type=_count, default=0, metavar="N", help="of weights, order and augmentation"
    )
    _add_budget(train)
    return top


def budget(arguments: argparse.Namespace) -> Budget:
    """The budget that a file and the options state; an option counts more. `ConfigError` names an impossible one."""
    given = {name: getattr(arguments, name) for name, *_ in _LIMITS}
    given |= {"min_accuracy": arguments.min_accuracy, "network": arguments.network}
    given |= {"metered": arguments.metered or None, "have_k": getattr(arguments, "have", 0) or None}
    fields = {name: value for name, value in given.items() if value is not None}
    return Budget.from_mapping({**(_read_budget(arguments.budget) if arguments.budget else {}), **fields})


def _read_budget(path: str) -> dict[str, Any]:
    wanted = "give a JSON object, as `mdc-device profile` prints it"
    try:
        document = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError
        raise ConfigError(f"{path} is no budget ({error}): {wanted}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} is no budget: {wanted}")
    return document


def amount(text: str) -> float:
    """A number with an optional unit prefix: 64k, 10MB, 1GiB. `ConfigError` when it is none."""
    match = _AMOUNT.fullmatch(text.strip())
    try:
        number = float(match["number"]) if match else math.nan
    except ValueError:
        number = math.nan
    if match is None or not math.isfinite(number):
        raise ConfigError(f"{text!r} is no amount: give a number such as 64000, 64k, 10MB or 1GiB")
    prefix = (match["prefix"] or "").lower()
    return number * (1024.0 if prefix.endswith("i") else 1000.0) ** _POWER[prefix.removesuffix("i")]


def _add_file_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands for a file that was fetched before."""
    grow = _command(commands, "grow", "make a fetched file a larger subset, fetching only what it lacks")
    _add_resizing(grow)
    _add_access(grow)
    _add_resizing(_command(commands, "shrink", "make a fetched file a smaller subset; needs no connection"))

    status = _command(commands, "status", "tell what a fetched file holds and whether it is right")
    status.add_argument("file", metavar="FILE", help="a fetched subset")

    verify = _command(commands, "verify", "check a fetched file against its manifest")
    verify.add_argument("file", metavar="FILE", help="a fetched subset")
    only = verify.add_mutually_exclusive_group()
    only.add_argument("--manifest", metavar="FILE", help="its manifest; default: FILE.manifest.json")
    only.add_argument(
        "--repair", action="store_true", help="put right what is wrong, fetching those ranks only"
    )
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
        "url", metavar="URL", nargs=count, help="the server, such as https://condense.example"
    )
    command.add_argument("set", metavar="SET", nargs=count, help="name of the set")
    command.add_argument(
        "--k",
        type=_size,
        default=None,
        metavar="N|auto",
        help="images per class: N, or as many up to N as the budget affords; auto (the default): the best it affords",
    )


def _add_resizing(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", metavar="FILE", help="a fetched subset")
    command.add_argument("--k", type=_count, required=True, metavar="N", help="images per class to have then")


def _add_access(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("connection")
    group.add_argument(
        "--key",
        help="API key; default: the environment variable MDC_KEY, else for a server on this machine mdc-data/admin.key",
    )
    group.add_argument(
        "--keyset",
        metavar="FILE",
        help="the server's key set, got by a way that you trust; default: the keys that it had at the first fetch",
    )
    group.add_argument(
        "--unsigned",
        action="store_true",
        help="believe a server that signs nothing; one whose keys are known must sign all the same",
    )
    group.add_argument(
        "--timeout",
        type=_argument,
        default=30.0,
        metavar="S",
        help="seconds without a byte after which a connection counts as broken (default 30)",
    )
    group.add_argument(
        "--retries",
        type=_count,
        default=4,
        metavar="N",
        help="attempts after a failure, with growing waits; those that bring bytes are not counted (default 4)",
    )


def _add_budget(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("budget", "what this device can spend; left out: no limit")
    group.add_argument("--budget", metavar="FILE", help="a budget as JSON; the options below count more")
    for name, option, unit, what in _LIMITS:
        group.add_argument(option, dest=name, type=_argument, metavar=unit, help=what)
    group.add_argument(
        "--min-accuracy", type=float, metavar="A", help="the least k measured to reach A, 0 to 1"
    )
    group.add_argument("--network", metavar="NAME", help="network to train, as in the manifest")
    group.add_argument("--metered", action="store_true", help="fetch no byte that is not measured to help")


def _argument(text: str) -> float:
    try:
        return amount(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _size(text: str) -> int | None:
    return None if text == "auto" else _count(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)
