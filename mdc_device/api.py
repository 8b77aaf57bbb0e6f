"""What `mdc-device` does, as functions of the same names.

    from mdc_device import api

    api.fetch("https://condense.example", "digits", "digits.mdc", budget=Budget(storage_bytes=6000))
    api.grow("digits.mdc", 8)
    api.shrink("digits.mdc", 2)

Every function raises `MdcError`s whose message says what to do next, and `OSError` for what storage refuses.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mdc_core.delivery import budget as budgets
from mdc_core.delivery import rankmajor
from mdc_core.delivery.budget import Budget, Plan
from mdc_core.delivery.manifest import Manifest
from mdc_core.errors import ConfigError, DigestError, FormatError
from mdc_device import assembly, client, files, state, trust
from mdc_device.client import Fetched, Link, Report
from mdc_device.decode import open_subset
from mdc_device.profile import profile
from mdc_device.state import State
from mdc_device.wire import Access

if TYPE_CHECKING:
    from mdc_device.trainer import Trained

__all__ = [
    "Access",
    "Budget",
    "Status",
    "fetch",
    "grow",
    "plan",
    "profile",
    "shrink",
    "status",
    "train",
    "verify",
]

File = str | os.PathLike[str]
NO_LIMIT = Budget()
DEFAULT = Access()


@dataclass(frozen=True)
class Status:
    """What a file holds, compared with what its manifest promises."""

    path: str
    """The file."""
    set_name: str
    """Name of the set, as the manifest has it."""
    version: int
    """Version of the set."""
    k: int
    """Size of the subset, as the header says; of a damaged one, as remembered."""
    ipc: int
    """N: size of the whole set."""
    bytes: int
    """Bytes of the file."""
    expected_bytes: int
    """Bytes of subset k."""
    sha256: str
    """Of the file as it is."""
    intact: bool
    """Whether that is the promised one."""
    damaged_ranks: tuple[int, ...]
    """Ranks 1..k that are not what the manifest promises."""
    expired: bool
    """Whether the manifest has expired."""
    url: str | None
    """The server that the file came from; None: not remembered."""
    trust: str | None
    """Where the keys came from that vouch for the manifest; see `mdc_device.trust`. None: not remembered."""
    clock_behind: bool
    """Whether this device's clock is before the time at which the manifest was made: then no expiry is noticed."""
    part_bytes: int = 0
    """Bytes that an unfinished fetch or growth has left beside the file, for the next one to go on from."""
    repaired_ranks: tuple[int, ...] = ()
    """Ranks that have just been fetched again."""

    @property
    def signed(self) -> bool:
        """Whether the manifest came with a signature of the server's keys."""
        return self.trust not in (None, trust.UNSIGNED)

    @property
    def verified(self) -> bool:
        """Whether the digests are right and tell who made the bytes."""
        return self.intact and self.trust in trust.VOUCHED

    def to_dict(self) -> dict[str, object]:
        """As JSON: field by field; `set_name` is called `set`."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {
            "set": values.pop("set_name"),
            **values,
            "verified": self.verified,
            "signed": self.signed,
        }


def plan(
    url: str | None = None,
    set_name: str | None = None,
    *,
    manifest: File | None = None,
    k: int | None = None,
    budget: Budget = NO_LIMIT,
    access: Access = DEFAULT,
) -> tuple[Manifest, Plan]:
    """The subset that a budget affords, and the manifest that tells; `k` is the largest that is wanted.

    From the server at `url`, or without any connection from a `manifest` that was kept. Raises `BudgetError`.
    """
    if manifest is not None:
        found = files.load_manifest(Path(manifest))
        client.check_current(found, "keep a current one")
    elif url is not None and set_name is not None:
        with Link.to(url, access) as link:
            found = client.fetch_manifest(link, set_name).manifest
    else:
        raise ConfigError("give the URL of a server and the name of a set, or a manifest")
    return found, budgets.plan(found, budget, at_most=k)


def fetch(
    url: str,
    set_name: str,
    to: File,
    *,
    k: int | None = None,
    budget: Budget = NO_LIMIT,
    access: Access = DEFAULT,
    report: Report | None = None,
) -> tuple[Manifest, Plan, Fetched]:
    """Bring the subset that the budget affords (at most `k`) to the file `to`, verified."""
    target = Path(to)
    with files.locked(target), Link.to(url, access) as link:
        published = client.fetch_manifest(link, set_name, state.load(target))
        chosen = budgets.plan(published.manifest, budget, at_most=k)
        done = client.fetch(link, published, chosen.k, target, report)
    return published.manifest, chosen, done


def grow(file: File, k: int, *, access: Access = DEFAULT, report: Report | None = None) -> Fetched:
    """Make a fetched file subset `k`, larger than it is, by fetching only the ranks that it lacks.

    They are of the version that the file is of, whatever has been published since. `ConfigError` when it is larger
    already. Until it is done the file stays what it was; interrupted, the same call goes on.
    """
    path = Path(file)
    with files.locked(path):
        remembered = _remembered(path)
        manifest = state.load_manifest(path, remembered)
        held = _held(path, manifest, remembered)
        if rankmajor.check_size(manifest.info, k) < held:
            raise ConfigError(f"{path} is subset {held} already: `mdc-device shrink` makes it smaller")
        with Link.to(remembered.url, access) as link:
            published = client.fetch_manifest(link, remembered.set_name, remembered, remembered.version)
            state.remember(path, published, held)
            return client.change(link, published, k, path, report, seed=path)


def shrink(file: File, k: int) -> Status:
    """Make a fetched file subset `k`, smaller than it is, without any connection.

    `ConfigError` when it is smaller already, `DigestError` when a rank that would stay is damaged, `FormatError` when
    the manifest has expired.
    """
    path = Path(file)
    with files.locked(path):
        remembered = state.load(path)
        manifest = state.load_manifest(path, remembered)
        client.check_current(manifest)
        held = _held(path, manifest, remembered)
        if rankmajor.check_size(manifest.info, k) > held:
            raise ConfigError(f"{path} is subset {held}: `mdc-device grow` makes it larger")
        assembly.shrink(path, k, manifest)
        state.remember_size(path, k)
        return _right(path, k, manifest, remembered)


def verify(
    file: File,
    *,
    manifest: File | None = None,
    repair: bool = False,
    access: Access = DEFAULT,
    report: Report | None = None,
) -> Status:
    """Check a file against its manifest: `FormatError`, or `DigestError` with the ranks, unless right and current.

    With `repair`, what is wrong is put right: the manifest, the header and the length, and ranks by fetching
    those alone. The server is only asked for what is missing.
    """
    path = Path(file)
    with files.locked(path, shared=not repair):
        if repair:
            return _repair(path, access, report)
        remembered = state.load(path)
        if manifest is None:
            return _verify(path, state.load_manifest(path, remembered), remembered)
        return _verify(path, files.load_manifest(Path(manifest)), remembered)


def status(file: File) -> Status:
    """What a file holds; changes and fetches nothing. `FormatError` when its manifest is not to be trusted."""
    path = Path(file)
    with files.locked(path, shared=True):
        remembered = state.load(path)
        return _status(path, state.load_manifest(path, remembered), remembered)


def train(
    file: File,
    *,
    to: File | None = None,
    budget: Budget = NO_LIMIT,
    test: str | None = None,
    data_root: File = "mdc-data/datasets",
    device: str = "cpu",
    seed: int = 0,
    report: Report | None = None,
) -> Trained:
    """Train the network of the manifest on a fetched file by its recipe, and write the weights to `to`.

    The file is verified first. The budget's epochs and batch size count more than the recipe's; where it does not
    afford all ranks that are held, the largest part that it affords is trained on. `test` is what `mdc condense`
    takes as data, whose test images tell the accuracy; named sets are below `data_root`. `to` is by default
    FILE.weights.safetensors; `report` gets the epochs. Needs the extra `core`: `ConfigError` without it. On a CPU it is
    faster after `mdc_core.malloc.keep_freed_memory()`, which holds for the whole process and is left to the caller.
    """
    try:
        from mdc_device import trainer
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"training needs {error.name}, which is not installed: pip install 'multisize-condensation[core]'"
        ) from None
    path = Path(file)
    weights = path.with_name(path.name + ".weights.safetensors") if to is None else Path(to)
    if weights.resolve() in {beside.resolve() for beside in files.all_of(path)}:
        raise ConfigError(f"the weights would overwrite {weights}: give another file with --to")
    with files.locked(weights):
        with files.locked(path, shared=True):
            remembered = state.load(path)
            manifest = state.load_manifest(path, remembered)
            _verify(path, manifest, remembered)
            task = trainer.prepare(open_subset(path), manifest, budget)
        return trainer.train(
            task,
            manifest,
            to=weights,
            test=test,
            data_root=Path(data_root),
            device=device,
            seed=seed,
            report=report,
        )


def _status(path: Path, manifest: Manifest, remembered: State | None) -> Status:
    """What is in the file, which is read once."""
    with path.open("rb") as file:
        k = files.size_of(file, manifest, remembered.k if remembered else None)
        scanner = files.scan(file, k, manifest)
    right = _right(path, k, manifest, remembered)
    if scanner.is_right:
        return right
    return replace(
        right,
        bytes=scanner.position,
        sha256=scanner.digest,
        intact=False,
        damaged_ranks=scanner.bad_ranks,
    )


def _right(path: Path, k: int, manifest: Manifest, remembered: State | None) -> Status:
    """Of a file whose bytes have just been checked: it is subset k."""
    size = rankmajor.subset_size(manifest.info, k)
    return Status(
        path=str(path),
        set_name=manifest.name,
        version=manifest.version,
        k=k,
        ipc=manifest.info.ipc,
        bytes=size,
        expected_bytes=size,
        sha256=manifest.digests.subsets[k - 1],
        intact=True,
        damaged_ranks=(),
        expired=client.is_expired(manifest),
        url=remembered.url if remembered else None,
        trust=remembered.trust if remembered else None,
        clock_behind=client.is_clock_behind(manifest),
        part_bytes=files.part_bytes(path),
    )


def _verify(path: Path, manifest: Manifest, remembered: State | None) -> Status:
    """What is in the file, if it is all right and current."""
    client.check_current(manifest)
    with path.open("rb") as opened:
        info, k = rankmajor.read_header(files.beginning_of(opened))
    if info != manifest.info:
        raise DigestError(f"{path} is not of the set {manifest.name!r} that the manifest describes")
    found = _status(path, manifest, remembered)
    _check(found, k, info)
    return found


def _check(found: Status, k: int, info: rankmajor.SetInfo) -> None:
    """Raise `DigestError`, with the ranks to fetch again, unless the file is right."""
    if found.bytes != found.expected_bytes:
        raise DigestError(
            f"subset {k} has {found.expected_bytes} bytes, but these are {found.bytes}: run "
            "`mdc-device verify --repair`",
            rankmajor.missing_ranks(found.bytes, k, info),
        )
    if found.damaged_ranks:
        raise DigestError(
            f"the sha256 of rank {', '.join(map(str, found.damaged_ranks))} of subset {k} is not the promised one: "
            "run `mdc-device verify --repair`, which fetches these alone",
            found.damaged_ranks,
        )
    if not found.intact:
        raise DigestError(
            f"the sha256 of the header of subset {k} is not the promised one: run `mdc-device verify --repair`"
        )


def _held(path: Path, manifest: Manifest, remembered: State | None) -> int:
    with path.open("rb") as file:
        return files.size_of(file, manifest, remembered.k if remembered else None)


def _repair(path: Path, access: Access, report: Report | None) -> Status:
    """Put right what is wrong with the file and its manifest."""
    remembered = _remembered(path)
    try:
        manifest = state.load_manifest(path, remembered)
        client.check_current(manifest)
    except (FileNotFoundError, FormatError):
        pass
    else:
        k = _held(path, manifest, remembered)
        with path.open("rb") as file:
            found = files.scan(file, k, manifest)
        if not found.bad_ranks:
            if not found.is_right:
                assembly.shrink(path, k, manifest)
            state.remember_size(path, k)
            return _right(path, k, manifest, remembered)
    with Link.to(remembered.url, access) as link:
        published = client.fetch_manifest(link, remembered.set_name, remembered, remembered.version)
        k = _held(path, published.manifest, remembered)
        with path.open("rb") as file:
            found = files.scan(file, k, published.manifest)
        state.remember(path, published, k)
        if not found.is_right:
            client.change(link, published, k, path, report, seed=path)
    return replace(_right(path, k, published.manifest, state.load(path)), repaired_ranks=found.bad_ranks)


def _remembered(path: Path) -> State:
    remembered = state.load(path)
    if remembered is None:
        raise ConfigError(
            f"{files.state_of(path)} is missing, so it is not known where {path} came from: fetch it again"
        )
    return remembered
