"""`mdc-device`: fetch, plan and verify from the command line of a device."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from mdc_core import rankmajor
from mdc_core.budget import Plan, plan
from mdc_core.errors import BudgetError, ConfigError, DigestError, FormatError, MdcError
from mdc_device import arguments, files, wire
from mdc_device.client import Report, fetch, fetch_manifest
from mdc_device.errors import RefusedError, UnreachableError

INTERRUPTED = 130
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (ConfigError, 2),
    (UnreachableError, 3),
    (RefusedError, 4),
    (FormatError, 5),
    (BudgetError, 6),
    (OSError, 1),
)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; `--help` lists them. Unknown options exit with 2 at once."""
    given = arguments.parser().parse_args(argv)
    try:
        {"fetch": _fetch, "plan": _plan, "verify": _verify}[given.command](given)
    except KeyboardInterrupt:
        kept = "; what was fetched is kept, run the same command again to go on" * (given.command == "fetch")
        _say(f"interrupted{kept}")
        return INTERRUPTED
    except (MdcError, OSError) as error:
        _say(str(error))
        return next(code for kind, code in _CODES if isinstance(error, kind))
    return 0


def _fetch(given: argparse.Namespace) -> None:
    budget = arguments.budget(given)
    with wire.connect(given.url, _key(given)) as http:
        published = fetch_manifest(http, given.set)
        manifest = published.manifest
        chosen = plan(manifest, budget, at_most=given.k)
        done = fetch(http, published, chosen.k, Path(given.to), _progress())
    if given.json:
        about = {"set": manifest.name, "version": manifest.version, "verified": True}
        print(json.dumps({**about, **done.to_dict(), "plan": chosen.to_dict()}))
        return
    print(f"{manifest.name} version {manifest.version}: {_size_text(chosen, manifest.info.ipc)}")
    print(f"{done.path}: {done.total_bytes} bytes, {done.received_bytes} of them fetched now")
    print(f"sha256 {done.sha256}, verified")
    if done.repaired_ranks:
        print(f"repaired: rank {', '.join(map(str, done.repaired_ranks))}")


def _plan(given: argparse.Namespace) -> None:
    budget = arguments.budget(given)
    with wire.connect(given.url, _key(given)) as http:
        manifest = fetch_manifest(http, given.set).manifest
    chosen = plan(manifest, budget, at_most=given.k)
    if given.json:
        print(json.dumps({"set": manifest.name, "version": manifest.version, **chosen.to_dict()}))
        return
    print(f"{manifest.name} version {manifest.version}: {_size_text(chosen, manifest.info.ipc)}")
    rows = (
        ("to fetch", chosen.delta_bytes, "bytes"),
        ("file", chosen.total_bytes, "bytes"),
        ("memory to train", chosen.memory_bytes, "bytes"),
        ("time", chosen.seconds, "s"),
        ("energy", chosen.joules, "J"),
        ("accuracy", chosen.accuracy, "measured"),
    )
    for what, value, unit in rows:
        print(f"{what:<16} {'not known' if value is None else f'{value:.10g} {unit}'}")


def _verify(given: argparse.Namespace) -> None:
    path = Path(given.file)
    manifest = files.load_manifest(Path(given.manifest) if given.manifest else files.manifest_of(path))
    data = path.read_bytes()
    info, k = rankmajor.read_header(data)
    if info != manifest.info:
        raise DigestError(f"{path} is not of the set {manifest.name!r} that the manifest describes")
    rankmajor.verify(data, k, info, manifest.digests)
    if given.json:
        about = {"set": manifest.name, "version": manifest.version, "k": k, "bytes": len(data)}
        print(json.dumps({**about, "sha256": rankmajor.sha256(data), "verified": True}))
    else:
        print(f"{path}: subset {k} of {manifest.name} version {manifest.version}, every digest is right")


def _say(text: str) -> None:
    """A message on stderr, in place of the progress line that a terminal may show."""
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    print(f"{clear}mdc-device: {text}", file=sys.stderr)


def _key(given: argparse.Namespace) -> str | None:
    return given.key or os.environ.get("MDC_KEY") or None


def _size_text(chosen: Plan, ipc: int) -> str:
    reasons = {
        None: "",
        "accuracy": "; a larger one is not measured to be better",
        "min_accuracy": "; it is the least that is accurate enough",
    }
    reason = reasons.get(chosen.limited_by, f"; {chosen.limited_by} allows no larger one")
    return f"subset {chosen.k} of {ipc}{reason}"


def _progress() -> Report | None:
    """A line that is rewritten, for people; None when nobody watches."""
    if not sys.stderr.isatty():
        return None

    def report(done: int, total: int) -> None:
        end = "\n" if done >= total else ""
        print(f"\r{done} of {total} bytes ({done / total:.0%})", end=end, file=sys.stderr, flush=True)

    return report
