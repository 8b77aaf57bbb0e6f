"""The command `mdc-device`: the functions of `mdc_device.api` on the command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from mdc_core.delivery.budget import Plan
from mdc_core.delivery.local_key import local_key
from mdc_core.delivery.manifest import Manifest
from mdc_core.delivery.verdict import BETTER
from mdc_core.errors import BudgetError, ConfigError, DataError, FormatError, MdcError
from mdc_core.system.malloc import keep_freed_memory
from mdc_device import api, arguments, state, trust
from mdc_device.client import Fetched, Report, is_clock_behind
from mdc_device.errors import BusyError, RefusedError, UnreachableError
from mdc_device.trust import read_keyset
from mdc_device.wire import Access

INTERRUPTED = 130
DAMAGED = 5
BUSY = 7
UNAUTHORISED = 401
CLOCK = "this device's clock is earlier than the set's publication, so expiry goes unnoticed: set the clock"
_TRUST: dict[str | None, str] = {
    trust.GIVEN: "signed by the keys of --keyset",
    trust.HTTPS: "signed by the server's keys, obtained over https",
    trust.LOCAL: "signed by the keys of a server on this machine",
    trust.HTTP: "signed by keys that were trusted on first use, over an insecure connection",
    trust.UNSIGNED: "not signed",
}
LINE_SECONDS = 30
"""Interval of progress lines if stderr is not a terminal."""
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (ConfigError, 2),
    (DataError, 2),
    (UnreachableError, 3),
    (RefusedError, 4),
    (FormatError, DAMAGED),
    (BudgetError, 6),
    (BusyError, BUSY),
    (OSError, 1),
)
_CONTINUED = ("fetch", "grow", "verify")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; `--help` lists the codes. Unknown options exit with 2."""
    args = arguments.parser().parse_args(argv)
    commands = {
        "fetch": _fetch,
        "grow": _grow,
        "plan": _plan,
        "profile": _profile,
        "shrink": _shrink,
        "status": _status,
        "train": _train,
        "verify": _verify,
    }
    try:
        return commands[args.command](args)
    except KeyboardInterrupt:
        hint = "; fetched data are kept, run the same command again to resume" * (args.command in _CONTINUED)
        _say(f"interrupted{hint}")
        return INTERRUPTED
    except (MdcError, OSError) as error:
        hint = "; give an API key with --key, or set MDC_KEY" if _wants_key(error) else ""
        _say(f"{error}{hint}")
        return next(code for kind, code in _CODES if isinstance(error, kind))


def _fetch(args: argparse.Namespace) -> int:
    manifest, chosen, done = api.fetch(
        args.url,
        args.set,
        args.to,
        k=args.k,
        budget=arguments.budget(args),
        access=_access(args),
        report=_progress(),
    )
    if args.json:
        about = {"set": manifest.name, "version": manifest.version}
        print(json.dumps({**about, **done.to_dict(), "plan": chosen.to_dict()}))
    else:
        _show_choice(manifest, chosen)
        _show_fetched(done)
    _tell_clock(manifest)
    return 0


def _grow(args: argparse.Namespace) -> int:
    done = api.grow(args.file, args.k, access=_access(args), report=_progress())
    if args.json:
        print(json.dumps(done.to_dict()))
    else:
        print(f"{args.file} is now subset {done.k}")
        _show_fetched(done)
    _tell_clock_of(args.file)
    return 0


def _shrink(args: argparse.Namespace) -> int:
    now = api.shrink(args.file, args.k)
    if args.json:
        print(json.dumps(now.to_dict()))
    else:
        print(f"{args.file} is now subset {now.k}, {now.bytes} bytes, sha256 {now.sha256}")
    _tell_clock_of(args.file)
    return 0


def _plan(args: argparse.Namespace) -> int:
    manifest, chosen = api.plan(
        args.url,
        args.set,
        manifest=args.manifest,
        k=args.k,
        budget=arguments.budget(args),
        access=_access(args),
    )
    _tell_clock(manifest)
    if args.json:
        print(json.dumps({"set": manifest.name, "version": manifest.version, **chosen.to_dict()}))
        return 0
    _show_choice(manifest, chosen)
    rows = (
        ("to fetch", chosen.delta_bytes, "bytes"),
        ("file", chosen.total_bytes, "bytes"),
        ("memory to train", chosen.memory_bytes, "bytes"),
        ("time", chosen.seconds, "s"),
        ("energy", chosen.joules, "J"),
        ("training", chosen.epochs, "epochs"),
        ("accuracy", chosen.accuracy, "measured"),
    )
    for label, value, unit in rows:
        print(f"{label:<16} {'unknown' if value is None else f'{value:.10g} {unit}'}")
    return 0


def _profile(args: argparse.Namespace) -> int:
    budget = api.profile(args.url, args.set, folder=args.folder, seconds=args.seconds, access=_access(args))
    print(json.dumps(budget.to_dict()))
    return 0


def _verify(args: argparse.Namespace) -> int:
    now = api.verify(
        args.file,
        manifest=args.manifest,
        repair=args.repair,
        access=_access(args),
        report=_progress() if args.repair else None,
    )
    if now.clock_behind:
        _say(CLOCK)
    if args.json:
        print(json.dumps(now.to_dict()))
        return 0
    if now.repaired_ranks:
        print(f"repaired: rank {', '.join(map(str, now.repaired_ranks))}")
    print(f"{now.path}: subset {now.k} of {now.set_name} version {now.version}, all digests match")
    return 0


def _status(args: argparse.Namespace) -> int:
    now = api.status(args.file)
    if args.json:
        print(json.dumps(now.to_dict()))
    else:
        print(f"{now.path}: subset {now.k} of {now.ipc} of {now.set_name} version {now.version}")
        integrity = "verified" if now.verified else "all digests match" if now.intact else "DAMAGED"
        print(f"{now.bytes} bytes, sha256 {now.sha256}, {integrity}")
        print(
            f"from {now.url or 'an unknown server'}, {_TRUST.get(now.trust, 'origin unknown')}"
            f"{'; the manifest has expired' * now.expired}"
        )
        if now.damaged_ranks:
            print(f"damaged: rank {', '.join(map(str, now.damaged_ranks))}")
        if now.part_bytes:
            print(
                f"unfinished: {now.path}.part has {now.part_bytes} bytes; run the same fetch or grow again to resume"
            )
    repair = f"run `mdc-device verify --repair {now.path}`"
    if now.clock_behind:
        _say(CLOCK)
    if not now.intact:
        _say(f"{now.path} does not match its manifest: {repair}")
    elif now.expired:
        _say(
            f"the manifest of {now.path} has expired: {repair} to get a current one, or correct this device's clock"
        )
    return 0 if now.intact and not now.expired else DAMAGED


def _train(args: argparse.Namespace) -> int:
    keep_freed_memory()
    done = api.train(
        args.file,
        to=args.to,
        budget=arguments.budget(args),
        test=args.test,
        data_root=args.data_root,
        device=args.device,
        seed=args.seed,
        report=_progress("epochs"),
    )
    _tell_clock_of(args.file)
    if args.json:
        print(json.dumps(done.to_dict()))
        return 0
    print(
        f"{done.network} trained on subset {done.k} ({done.images} images): {done.epochs} epochs, {done.seconds:.1f} s"
    )
    if done.accuracy is not None:
        print(f"accuracy on the test images of {args.test}: {done.accuracy:.2%}")
    print(f"weights: {done.path}")
    return 0


def _show_choice(manifest: Manifest, chosen: Plan) -> None:
    print(f"{manifest.name} version {manifest.version}: {_size_text(chosen, manifest.info.ipc)}")
    if chosen.verdict not in (None, BETTER):
        print(f"subset {chosen.k} is {chosen.verdict}")
    if chosen.reason is not None:
        print(chosen.reason)


def _show_fetched(done: Fetched) -> None:
    print(f"{done.path}: {done.total_bytes} bytes, {done.received_bytes} of them fetched now")
    print(f"sha256 {done.sha256}, {'verified' if done.verified else 'matches the manifest'}")
    if not done.verified:
        print(f"{_TRUST[done.trust]}: matching digests prove that nothing was damaged, but not who made it")
    if done.trust == trust.HTTP:
        print("compare these keys with a source you trust, or give them as --keyset FILE")
    if done.repaired_ranks:
        print(f"repaired: rank {', '.join(map(str, done.repaired_ranks))}")


def _tell_clock(manifest: Manifest) -> None:
    if is_clock_behind(manifest):
        _say(CLOCK)


def _tell_clock_of(file: str) -> None:
    """Warn if the clock is behind the manifest of a file."""
    _tell_clock(state.load_manifest(Path(file), state.load(Path(file))))


def _say(text: str) -> None:
    """Print a message on stderr, replacing the progress line on a terminal."""
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    print(f"{clear}mdc-device: {text}", file=sys.stderr)


def _wants_key(error: Exception) -> bool:
    return isinstance(error, RefusedError) and error.status == UNAUTHORISED


def _access(args: argparse.Namespace) -> Access:
    return Access(
        key=args.key or os.environ.get("MDC_KEY") or _local_key(args),
        timeout_s=args.timeout,
        retries=args.retries,
        keyset=read_keyset(Path(args.keyset)) if args.keyset else None,
        unsigned=args.unsigned,
    )


def _local_key(args: argparse.Namespace) -> str | None:
    """The key of a service on this machine, if the command addresses one."""
    url = getattr(args, "url", None)
    if url is None and hasattr(args, "file"):
        try:
            remembered = state.load(Path(args.file))
        except (MdcError, OSError):  # the command itself will report it
            remembered = None
        url = remembered and remembered.url
    return local_key(url) if url else None


def _size_text(chosen: Plan, ipc: int) -> str:
    reasons = {
        None: "",
        "accuracy": "; no larger one is measured to be better",
        "min_accuracy": "; it is the smallest that is accurate enough",
    }
    reason = reasons.get(chosen.limited_by, f"; {chosen.limited_by} allows no larger one")
    return f"subset {chosen.k} of {ipc}{reason}"


def _progress(what: str = "bytes") -> Report:
    """Rewrite one line on a terminal; elsewhere print a line every 30 s."""
    on_terminal = sys.stderr.isatty()
    printed_at = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal printed_at
        text = f"{done} of {total} {what} ({done / total:.0%})"
        if on_terminal:
            print(f"\r{text}", end="\n" if done >= total else "", file=sys.stderr, flush=True)
        elif time.monotonic() - printed_at >= LINE_SECONDS:
            printed_at = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    return report
