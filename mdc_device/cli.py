"""`mdc-device`: the functions of `mdc_device.api` from the command line of a device."""

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
from mdc_core.malloc import keep_freed_memory
from mdc_device import api, arguments, state, trust
from mdc_device.client import Fetched, Report, is_clock_behind
from mdc_device.errors import BusyError, RefusedError, UnreachableError
from mdc_device.trust import read_keyset
from mdc_device.wire import Access

INTERRUPTED = 130
DAMAGED = 5
BUSY = 7
UNAUTHORISED = 401
CLOCK = (
    "this device's clock is before the time at which the set was published, so expiry is not noticed: set it"
)
_TRUST: dict[str | None, str] = {
    trust.GIVEN: "signed by the keys that were given",
    trust.HTTPS: "signed by the keys that the server had over https",
    trust.LOCAL: "signed by the keys of a server on this machine",
    trust.HTTP: "signed by keys that were believed at first use, over a connection that is not secure",
    trust.UNSIGNED: "not signed",
}
LINE_SECONDS = 30
"""Between two lines of progress where no terminal shows one."""
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
    """Run one command and return its exit code; `--help` lists them. Unknown options exit with 2 at once."""
    given = arguments.parser().parse_args(argv)
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
        return commands[given.command](given)
    except KeyboardInterrupt:
        kept = "; what was fetched is kept, run the same command again to go on" * (
            given.command in _CONTINUED
        )
        _say(f"interrupted{kept}")
        return INTERRUPTED
    except (MdcError, OSError) as error:
        hint = "; give an API key with --key, or set MDC_KEY" if _wants_key(error) else ""
        _say(f"{error}{hint}")
        return next(code for kind, code in _CODES if isinstance(error, kind))


def _fetch(given: argparse.Namespace) -> int:
    manifest, chosen, done = api.fetch(
        given.url,
        given.set,
        given.to,
        k=given.k,
        budget=arguments.budget(given),
        access=_access(given),
        report=_progress(),
    )
    if given.json:
        about = {"set": manifest.name, "version": manifest.version}
        print(json.dumps({**about, **done.to_dict(), "plan": chosen.to_dict()}))
    else:
        _show_choice(manifest, chosen)
        _show_fetched(done)
    _tell_clock(manifest)
    return 0


def _grow(given: argparse.Namespace) -> int:
    done = api.grow(given.file, given.k, access=_access(given), report=_progress())
    if given.json:
        print(json.dumps(done.to_dict()))
    else:
        print(f"{given.file} is subset {done.k} now")
        _show_fetched(done)
    _tell_clock_of(given.file)
    return 0


def _shrink(given: argparse.Namespace) -> int:
    now = api.shrink(given.file, given.k)
    if given.json:
        print(json.dumps(now.to_dict()))
    else:
        print(f"{given.file} is subset {now.k} now, {now.bytes} bytes, sha256 {now.sha256}")
    _tell_clock_of(given.file)
    return 0


def _plan(given: argparse.Namespace) -> int:
    manifest, chosen = api.plan(
        given.url,
        given.set,
        manifest=given.manifest,
        k=given.k,
        budget=arguments.budget(given),
        access=_access(given),
    )
    _tell_clock(manifest)
    if given.json:
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
    for what, value, unit in rows:
        print(f"{what:<16} {'not known' if value is None else f'{value:.10g} {unit}'}")
    return 0


def _profile(given: argparse.Namespace) -> int:
    budget = api.profile(
        given.url, given.set, folder=given.folder, seconds=given.seconds, access=_access(given)
    )
    print(json.dumps(budget.to_dict()))
    return 0


def _verify(given: argparse.Namespace) -> int:
    found = api.verify(
        given.file,
        manifest=given.manifest,
        repair=given.repair,
        access=_access(given),
        report=_progress() if given.repair else None,
    )
    if found.clock_behind:
        _say(CLOCK)
    if given.json:
        print(json.dumps(found.to_dict()))
        return 0
    if found.repaired_ranks:
        print(f"repaired: rank {', '.join(map(str, found.repaired_ranks))}")
    print(
        f"{found.path}: subset {found.k} of {found.set_name} version {found.version}, every digest is right"
    )
    return 0


def _status(given: argparse.Namespace) -> int:
    found = api.status(given.file)
    if given.json:
        print(json.dumps(found.to_dict()))
    else:
        print(f"{found.path}: subset {found.k} of {found.ipc} of {found.set_name} version {found.version}")
        right = "verified" if found.verified else "every digest is right" if found.intact else "DAMAGED"
        print(f"{found.bytes} bytes, sha256 {found.sha256}, {right}")
        print(
            f"from {found.url or 'an unknown server'}, {_TRUST.get(found.trust, 'not known who made it')}"
            f"{'; the manifest has expired' * found.expired}"
        )
        if found.damaged_ranks:
            print(f"damaged: rank {', '.join(map(str, found.damaged_ranks))}")
        if found.part_bytes:
            print(
                f"unfinished: {found.path}.part has {found.part_bytes} bytes, from which the same fetch or grow goes on"
            )
    repair = f"run `mdc-device verify --repair {found.path}`"
    if found.clock_behind:
        _say(CLOCK)
    if not found.intact:
        _say(f"{found.path} is not what its manifest promises: {repair}")
    elif found.expired:
        _say(
            f"the manifest of {found.path} has expired: {repair} for a current one, or correct this device's clock"
        )
    return 0 if found.intact and not found.expired else DAMAGED


def _train(given: argparse.Namespace) -> int:
    keep_freed_memory()
    done = api.train(
        given.file,
        to=given.to,
        budget=arguments.budget(given),
        test=given.test,
        data_root=given.data_root,
        device=given.device,
        seed=given.seed,
        report=_progress("epochs"),
    )
    _tell_clock_of(given.file)
    if given.json:
        print(json.dumps(done.to_dict()))
        return 0
    print(
        f"{done.network} trained on subset {done.k} ({done.images} images): {done.epochs} epochs, {done.seconds:.1f} s"
    )
    if done.accuracy is not None:
        print(f"accuracy on the test images of {given.test}: {done.accuracy:.2%}")
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
    print(f"sha256 {done.sha256}, {'verified' if done.verified else 'as the manifest says'}")
    if not done.verified:
        print(f"{_TRUST[done.trust]}: right digests tell that nothing was damaged, not who made it")
    if done.trust == trust.HTTP:
        print("compare these keys by a way that you trust, or give them as --keyset FILE")
    if done.repaired_ranks:
        print(f"repaired: rank {', '.join(map(str, done.repaired_ranks))}")


def _tell_clock(manifest: Manifest) -> None:
    if is_clock_behind(manifest):
        _say(CLOCK)


def _tell_clock_of(file: str) -> None:
    """By the manifest that lies beside it."""
    _tell_clock(state.load_manifest(Path(file), state.load(Path(file))))


def _say(text: str) -> None:
    """A message on stderr, in place of the progress line that a terminal may show."""
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    print(f"{clear}mdc-device: {text}", file=sys.stderr)


def _wants_key(error: Exception) -> bool:
    return isinstance(error, RefusedError) and error.status == UNAUTHORISED


def _access(given: argparse.Namespace) -> Access:
    return Access(
        key=given.key or os.environ.get("MDC_KEY") or _local_key(given),
        timeout_s=given.timeout,
        retries=given.retries,
        keyset=read_keyset(Path(given.keyset)) if given.keyset else None,
        unsigned=given.unsigned,
    )


def _local_key(given: argparse.Namespace) -> str | None:
    """The key of a service on this machine, where the command is for one."""
    url = getattr(given, "url", None)
    if url is None and hasattr(given, "file"):
        try:
            remembered = state.load(Path(given.file))
        except (MdcError, OSError):  # which the command itself will tell
            remembered = None
        url = remembered and remembered.url
    return local_key(url) if url else None


def _size_text(chosen: Plan, ipc: int) -> str:
    reasons = {
        None: "",
        "accuracy": "; a larger one is not measured to be better",
        "min_accuracy": "; it is the least that is accurate enough",
    }
    reason = reasons.get(chosen.limited_by, f"; {chosen.limited_by} allows no larger one")
    return f"subset {chosen.k} of {ipc}{reason}"


def _progress(what: str = "bytes") -> Report:
    """A line that is rewritten on a terminal; elsewhere a line every 30 s."""
    on_terminal = sys.stderr.isatty()
    told = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal told
        text = f"{done} of {total} {what} ({done / total:.0%})"
        if on_terminal:
            print(f"\r{text}", end="\n" if done >= total else "", file=sys.stderr, flush=True)
        elif time.monotonic() - told >= LINE_SECONDS:
            told = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    return report
