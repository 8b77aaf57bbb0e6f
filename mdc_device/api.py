"""The commands of `mdc-device` as Python functions of the same names.

    from mdc_device import api

    api.fetch("https://condense.example", "digits", "digits.mdc", budget=Budget(storage_bytes=6000))
    api.grow("digits.mdc", 8)
    api.shrink("digits.mdc", 2)

Every function raises an `MdcError` whose message says what to do next, or an `OSError` if storage fails.
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
    """What a file holds, compared with its manifest."""

    path: str
    """The file."""
    set_name: str
    """Name of the set, from the manifest."""
    version: int
    """Version of the set."""
    k: int
    """Size of the subset, from the header; if that is damaged, from the saved state."""
    ipc: int
    """N: size of the whole set."""
    bytes: int
    """Bytes of the file."""
    expected_bytes: int
    """Bytes of subset k."""
    sha256: str
    """Digest of the file."""
    intact: bool
    """Whether the digest matches the manifest."""
    damaged_ranks: tuple[int, ...]
    """Ranks 1..k whose digests do not match the manifest."""
    expired: bool
    """Whether the manifest has expired."""
    url: str | None
    """The server that the file came from; None if unknown."""
    trust: str | None
    """Where the keys that signed the manifest came from; see `mdc_device.trust`. None if unknown."""
    clock_behind: bool
    """Whether this device's clock is earlier than the manifest's creation, so that expiry goes unnoticed."""
    part_bytes: int = 0
    """Bytes in FILE.part, left by an unfinished fetch or grow; the next one resumes from them."""
    repaired_ranks: tuple[int, ...] = ()
    """Ranks that this call fetched again."""

    @property
    def signed(self) -> bool:
        """Whether the server's keys signed the manifest."""
        return self.trust not in (None, trust.UNSIGNED)

    @property
    def verified(self) -> bool:
        """Whether the digests match and prove who made the bytes."""
        return self.intact and self.trust in trust.VOUCHED

    def to_dict(self) -> dict[str, object]:
        """The fields as JSON; `set_name` is called `set`."""
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
    """The manifest, and the subset of it that fits the budget; `k` is the largest size to consider.

    The manifest comes from the server at `url`, or offline from the file `manifest`. Raises `BudgetError` if no
    subset fits.
    """
    if manifest is not None:
        current = files.load_manifest(Path(manifest))
        client.check_current(current, "save a current one")
    elif url is not None and set_name is not None:
        with Link.to(url, access) as link:
            current = client.fetch_manifest(link, set_name).manifest
    else:
        raise ConfigError("give the URL of a server and the name of a set, or a manifest")
    return current, budgets.plan(current, budget, at_most=k)


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
    """Fetch the subset that fits the budget (at most `k`) to the file `to`, and verify it."""
    target = Path(to)
    with files.locked(target), Link.to(url, access) as link:
        published = client.fetch_manifest(link, set_name, state.load(target))
        chosen = budgets.plan(published.manifest, budget, at_most=k)
        done = client.fetch(link, published, chosen.k, target, report)
    return published.manifest, chosen, done


def grow(file: File, k: int, *, access: Access = DEFAULT, report: Report | None = None) -> Fetched:
    """Grow a fetched file to subset `k`, fetching only the missing ranks.

    The ranks come from the file's own version, even if a newer one has been published. The file stays unchanged until
    the growth is complete; call again to resume after an interruption. Raises `ConfigError` if the file is larger
    already.
    """
    path = Path(file)
    with files.locked(path):
        remembered = _required_state(path)
        manifest = state.load_manifest(path, remembered)
        held_k = _held_k(path, manifest, remembered)
        if rankmajor.check_size(manifest.info, k) < held_k:
            raise ConfigError(
                f"{path} is subset {held_k} already: use `mdc-device shrink` to make it smaller"
            )
        with Link.to(remembered.url, access) as link:
            published = client.fetch_manifest(link, remembered.set_name, remembered, remembered.version)
            state.remember(path, published, held_k)
            return client.change(link, published, k, path, report, seed=path)


def shrink(file: File, k: int) -> Status:
    """Cut a fetched file down to subset `k`, offline.

    Raises `ConfigError` if the file is smaller already, `DigestError` if a remaining rank is damaged, and `FormatError`
    if the manifest has expired.
    """
    path = Path(file)
    with files.locked(path):
        remembered = state.load(path)
        manifest = state.load_manifest(path, remembered)
        client.check_current(manifest)
        held_k = _held_k(path, manifest, remembered)
        if rankmajor.check_size(manifest.info, k) > held_k:
            raise ConfigError(f"{path} is only subset {held_k}: use `mdc-device grow` to make it larger")
        assembly.shrink(path, k, manifest)
        state.remember_size(path, k)
        return _intact_status(path, k, manifest, remembered)


def verify(
    file: File,
    *,
    manifest: File | None = None,
    repair: bool = False,
    access: Access = DEFAULT,
    report: Report | None = None,
) -> Status:
    """Check a file against its manifest.

    Raises `DigestError` with the damaged ranks, or `FormatError` if the manifest is damaged or has expired. With
    `repair`, the manifest, the header, the length and the ranks are repaired instead. Only what is missing is fetched.
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
    """What a file holds; changes and fetches nothing. Raises `FormatError` if its manifest cannot be trusted."""
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
    """Train the manifest's network on a fetched file by its recipe, and write the weights to `to`.

    The file is verified first. The budget's epochs and batch size override the recipe's. If the budget does not fit
    all held ranks, training uses as many as fit.

    Args:
        file: what `fetch` wrote.
        to: file for the weights; by default FILE.weights.safetensors.
        budget: what the device can spend.
        test: data as `mdc condense` takes it; the accuracy is measured on its test images.
        data_root: folder of the named data sets.
        device: the torch device.
        seed: of weights, order and augmentation.
        report: called with the epochs done and the total.

    Raises `ConfigError` if the extra `core` is not installed. On a CPU, first call
    `mdc_core.system.malloc.keep_freed_memory()`: training gets faster, but the setting affects the whole process.
    """
    try:
        from mdc_device import trainer
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"training needs {error.name}, which is not installed: pip install 'multisize-condensation[core]'"
        ) from None
    path = Path(file)
    weights = path.with_name(path.name + ".weights.safetensors") if to is None else Path(to)
    if weights.resolve() in {used.resolve() for used in files.all_of(path)}:
        raise ConfigError(f"the weights would overwrite {weights}: choose another file with --to")
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
    """What the file holds; reads it once."""
    with path.open("rb") as file:
        k = files.size_of(file, manifest, remembered.k if remembered else None)
        scanner = files.scan(file, k, manifest)
    intact = _intact_status(path, k, manifest, remembered)
    if scanner.is_right:
        return intact
    return replace(
        intact,
        bytes=scanner.position,
        sha256=scanner.digest,
        intact=False,
        damaged_ranks=scanner.bad_ranks,
    )


def _intact_status(path: Path, k: int, manifest: Manifest, remembered: State | None) -> Status:
    """The status of a file whose bytes were just verified to be subset k."""
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
    """The status of an intact file with a current manifest; raises otherwise."""
    client.check_current(manifest)
    with path.open("rb") as opened:
        info, k = rankmajor.read_header(files.beginning_of(opened))
    if info != manifest.info:
        raise DigestError(
            f"{path} does not belong to the set {manifest.name!r} of its manifest: fetch it again"
        )
    now = _status(path, manifest, remembered)
    _check(now, k, info)
    return now


def _check(now: Status, k: int, info: rankmajor.SetInfo) -> None:
    """Raise `DigestError`, with the ranks to fetch again, unless the file is intact."""
    if now.bytes != now.expected_bytes:
        raise DigestError(
            f"subset {k} should have {now.expected_bytes} bytes, but the file has {now.bytes}: run "
            "`mdc-device verify --repair`",
            rankmajor.missing_ranks(now.bytes, k, info),
        )
    if now.damaged_ranks:
        raise DigestError(
            f"the sha256 of rank {', '.join(map(str, now.damaged_ranks))} of subset {k} does not match the manifest: "
            "run `mdc-device verify --repair`, which fetches only these ranks",
            now.damaged_ranks,
        )
    if not now.intact:
        raise DigestError(
            f"the sha256 of the header of subset {k} does not match the manifest: run `mdc-device verify --repair`"
        )


def _held_k(path: Path, manifest: Manifest, remembered: State | None) -> int:
    with path.open("rb") as file:
        return files.size_of(file, manifest, remembered.k if remembered else None)


def _repair(path: Path, access: Access, report: Report | None) -> Status:
    """Repair the file and its manifest: offline if possible, else from the server."""
    remembered = _required_state(path)
    try:
        manifest = state.load_manifest(path, remembered)
        client.check_current(manifest)
    except (FileNotFoundError, FormatError):
        pass
    else:
        k = _held_k(path, manifest, remembered)
        with path.open("rb") as file:
            scanner = files.scan(file, k, manifest)
        if not scanner.bad_ranks:
            if not scanner.is_right:
                assembly.shrink(path, k, manifest)
            state.remember_size(path, k)
            return _intact_status(path, k, manifest, remembered)
    with Link.to(remembered.url, access) as link:
        published = client.fetch_manifest(link, remembered.set_name, remembered, remembered.version)
        k = _held_k(path, published.manifest, remembered)
        with path.open("rb") as file:
            scanner = files.scan(file, k, published.manifest)
        state.remember(path, published, k)
        if not scanner.is_right:
            client.change(link, published, k, path, report, seed=path)
    repaired = _intact_status(path, k, published.manifest, state.load(path))
    return replace(repaired, repaired_ranks=scanner.bad_ranks)


def _required_state(path: Path) -> State:
    remembered = state.load(path)
    if remembered is None:
        raise ConfigError(
            f"{files.state_of(path)} is missing, so the server of {path} is unknown: fetch it again"
        )
    return remembered
