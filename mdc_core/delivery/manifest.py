"""The manifest: what a device needs to know about a published set before it fetches any of it. Plain JSON.

Unknown fields are ignored, so that newer servers can add some. Another `manifest_version` is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from mdc_core.delivery import rankmajor
from mdc_core.delivery.cost import MOST_STEPS, Cost
from mdc_core.delivery.rankmajor import Digests, SetInfo
from mdc_core.errors import ConfigError, FormatError, shown

MANIFEST_VERSION = 1

_T = TypeVar("_T")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Accuracy:
    """Measured test accuracy of networks trained on subset k as delivered. Fractions in [0, 1]."""

    network: str
    """Name of the trained network, as in the cost table."""
    epochs: int
    """Epochs of each training."""
    k: int
    """Size of the subset."""
    mdc_mean: float
    """Mean accuracy over the repeats."""
    mdc_std: float
    """Standard deviation of `mdc_mean`'s repeats."""
    random_mean: float | None
    """Mean accuracy of the same training on k random real images per class; None if not measured."""
    random_std: float | None
    """Standard deviation of `random_mean`'s repeats; None if not measured."""
    repeats: int
    """Networks trained per figure."""
    shrunk_mean: float | None = None
    """The same on k·f² real images shrunk to tiles: as many bytes as subset k. None if not measured, or if equal to
    random."""
    shrunk_std: float | None = None
    """Standard deviation of `shrunk_mean`'s repeats; None in the same cases."""


@dataclass(frozen=True)
class Manifest:
    """One version of a published set."""

    name: str
    """Name of the set."""
    version: int
    """1 or more; increases with every publication under the same name."""
    created: datetime
    """Time of publication (UTC)."""
    expires: datetime | None
    """Time from which it must not be used (UTC); None: never."""
    info: SetInfo
    """Shape and normalisation of the set."""
    digests: Digests
    """sha256 of object, ranks, headers and subsets."""
    object_url: str
    """URL of the whole object."""
    network: Mapping[str, Any]
    """The network that was matched."""
    recipe: Mapping[str, Any]
    """How the networks of `accuracy` were trained."""
    accuracy: tuple[Accuracy, ...]
    """The measurements."""
    cost: Mapping[str, Cost]
    """Training cost by network name."""
    data_sha256: str | None = None
    """Digest of the real training images and labels, in the size and order used for condensing; None if not recorded.
    If the data have changed, some of these images may be test images now."""


def build_manifest(
    *,
    name: str,
    version: int,
    created: str,
    expires: str | None,
    info: SetInfo,
    digests: Digests,
    object_url: str,
    network: Mapping[str, Any],
    recipe: Mapping[str, Any],
    accuracy: Sequence[Mapping[str, Any]],
    cost: Mapping[str, Any],
    data_sha256: str | None = None,
) -> dict[str, Any]:
    """Build a manifest as JSON values; `FormatError` names a field that readers would refuse.

    Times are ISO 8601 in UTC. Every row of `accuracy` has the fields of `Accuracy`; `cost` maps a network's name to the
    fields of `Cost`.
    """
    document: dict[str, Any] = {
        "manifest_version": MANIFEST_VERSION,
        "name": name,
        "version": version,
        "created": created,
        "expires": expires,
        **asdict(info),
        "classes": list(info.classes),
        "mean": list(info.mean),
        "std": list(info.std),
        "rank_bytes": info.rank_bytes,
        "header_bytes": rankmajor.header_size(info),
        "object": {
            "url": object_url,
            "bytes": rankmajor.subset_size(info, info.ipc),
            "sha256": digests.object,
            "encoding": rankmajor.FORMAT,
        },
        "rank_sha256": list(digests.ranks),
        "header_sha256": list(digests.headers),
        "subset_sha256": list(digests.subsets),
        "network": dict(network),
        "recipe": dict(recipe),
        "accuracy": [dict(row) for row in accuracy],
        "cost": {
            key: value.to_dict() if isinstance(value, Cost) else dict(value) for key, value in cost.items()
        },
        "data_sha256": data_sha256,
    }
    parse_manifest(document)
    return document


def parse_manifest(document: Mapping[str, Any]) -> Manifest:
    """Parse a manifest from JSON values; `FormatError` names a missing or invalid field."""
    if not isinstance(document, Mapping):
        raise FormatError(f"a manifest is a JSON object, not {type(document).__name__}: fetch it again")
    version = document.get("manifest_version")
    if version != MANIFEST_VERSION:
        raise FormatError(
            f"manifest_version is {shown(version)}, but this release reads {MANIFEST_VERSION}: update this software"
        )
    info = _info(document)
    stored = _take(document, "object", dict)
    if (encoding := _take(stored, "encoding", str, "object.")) != rankmajor.FORMAT:
        raise FormatError(
            f"object.encoding is {shown(encoding)}, but this release reads {rankmajor.FORMAT!r}: update this software"
        )
    _expect(_take(stored, "bytes", int, "object."), rankmajor.subset_size(info, info.ipc), "object.bytes")
    return Manifest(
        name=_take(document, "name", str),
        version=_whole(document, "version", most=rankmajor.LARGEST),
        created=_time("created", _take(document, "created", str)),
        expires=_time("expires", document["expires"]) if document.get("expires") is not None else None,
        info=info,
        digests=Digests(
            object=_digest("object.sha256", stored.get("sha256")),
            ranks=_digests(document, "rank_sha256", info.ipc),
            headers=_digests(document, "header_sha256", info.ipc),
            subsets=_digests(document, "subset_sha256", info.ipc),
        ),
        object_url=_take(stored, "url", str, "object."),
        network=_take(document, "network", dict),
        recipe=_recipe(_take(document, "recipe", dict)),
        accuracy=parse_accuracy(_take(document, "accuracy", list), info.ipc),
        cost={str(key): _cost(value, f"cost.{key}") for key, value in _take(document, "cost", dict).items()},
        data_sha256=None if (data := document.get("data_sha256")) is None else _digest("data_sha256", data),
    )


def _recipe(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check the recipe's numbers that plans use; the training checks the rest."""
    for key in {"epochs", "batch_size"} & recipe.keys():
        _whole(recipe, key, "recipe.")
    return recipe


def parse_accuracy(rows: Sequence[object], ipc: int) -> tuple[Accuracy, ...]:
    """Parse the accuracy table of a set with `ipc` ranks; `FormatError` names a missing or invalid field."""
    return tuple(_accuracy(row, f"accuracy[{i}].", ipc) for i, row in enumerate(rows))


def _info(document: Mapping[str, Any]) -> SetInfo:
    """Parse the set's shape, and check the sizes that the manifest states for readers in other languages."""
    lists = {name: tuple(_take(document, name, list)) for name in ("classes", "mean", "std")}
    try:
        info = SetInfo(
            ipc=_take(document, "ipc", int),
            factor=_take(document, "factor", int),
            image_size=_take(document, "image_size", int),
            channels=_take(document, "channels", int),
            classes=lists["classes"],
            mean=lists["mean"],
            std=lists["std"],
        )
    except ConfigError as error:
        raise FormatError(f"the manifest describes an impossible set: {error}") from None
    _expect(_take(document, "rank_bytes", int), info.rank_bytes, "rank_bytes")
    _expect(_take(document, "header_bytes", int), rankmajor.header_size(info), "header_bytes")
    return info


def _accuracy(row: object, where: str, ipc: int) -> Accuracy:
    if not isinstance(row, Mapping):
        raise FormatError(f"{where[:-1]} is {shown(row)}: it should be an object")
    k = _whole(row, "k", where, rankmajor.LARGEST)
    if k > ipc:
        raise FormatError(f"{where}k is {k}, but the set has the sizes 1..{ipc}")
    baselines = {
        f"{name}_{figure}": _fraction(row, f"{name}_{figure}", where)
        for name in ("random", "shrunk")
        if row.get(f"{name}_mean") is not None
        for figure in ("mean", "std")
    }
    return Accuracy(
        network=_take(row, "network", str, where),
        epochs=_whole(row, "epochs", where),
        k=k,
        mdc_mean=_fraction(row, "mdc_mean", where),
        mdc_std=_fraction(row, "mdc_std", where),
        random_mean=baselines.get("random_mean"),
        random_std=baselines.get("random_std"),
        repeats=_whole(row, "repeats", where),
        shrunk_mean=baselines.get("shrunk_mean"),
        shrunk_std=baselines.get("shrunk_std"),
    )


def _cost(value: object, where: str) -> Cost:
    try:
        return Cost.from_dict(value)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from None


def _take(document: Mapping[str, Any], key: str, kind: type[_T], where: str = "") -> _T:
    """The field `key`; `FormatError` unless it has the JSON type `kind`."""
    value = document.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        actual = "missing" if key not in document else shown(value)
        raise FormatError(f"{where}{key} is {actual}: it should be of type {kind.__name__}")
    return value


def _whole(document: Mapping[str, Any], key: str, where: str = "", most: int = MOST_STEPS) -> int:
    value = _take(document, key, int, where)
    if not 1 <= value <= most:
        raise FormatError(f"{where}{key} is {shown(value)}: it should be a whole number from 1 to {most}")
    return value


def _fraction(document: Mapping[str, Any], key: str, where: str) -> float:
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise FormatError(f"{where}{key} is {shown(value)}: it should be a number in [0, 1]")
    return float(value)


def _time(key: str, value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        raise FormatError(
            f"{key} is {shown(value)}: it should be a time such as 2030-01-31T12:00:00Z"
        ) from None
    if moment.utcoffset() != timedelta(0):
        raise FormatError(f"{key} is {shown(value)}: it should be in UTC, ending in Z or +00:00")
    return moment


def _digest(where: str, value: object) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise FormatError(
            f"{where} is {shown(value)}: it should be a sha256 in 64 lower-case hexadecimal digits"
        )
    return value


def _digests(document: Mapping[str, Any], key: str, count: int) -> tuple[str, ...]:
    values = _take(document, key, list)
    _expect(len(values), count, f"the length of {key}")
    return tuple(_digest(f"{key}[{i}]", value) for i, value in enumerate(values))


def _expect(value: int, expected: int, what: str) -> None:
    if value != expected:
        raise FormatError(f"{what} is {shown(value)}, but it should be {expected} for this set")
