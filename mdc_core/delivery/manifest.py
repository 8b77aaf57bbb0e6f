"""The manifest: what a device must know of a published set before it fetches a byte of it. Plain JSON.

Fields that this release does not know are ignored, so that a newer server can add some; another
`manifest_version` is refused.
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
    """Measured test accuracy of networks trained on subset k as delivered; fractions in [0, 1]."""

    network: str
    """Name of the trained network, as in the cost table."""
    epochs: int
    """Epochs of each training."""
    k: int
    """Size of the subset."""
    mdc_mean: float
    """Mean accuracy over the repeats."""
    mdc_std: float
    """Its standard deviation."""
    random_mean: float | None
    """The same training on k random real images per class; None: not measured."""
    random_std: float | None
    """Its standard deviation; None: not measured."""
    repeats: int
    """Networks trained per figure."""
    shrunk_mean: float | None = None
    """The same on k·f² of them, shrunk to tiles, the bytes of subset k; None: not measured, or the same as random."""
    shrunk_std: float | None = None
    """Its standard deviation; None likewise."""


@dataclass(frozen=True)
class Manifest:
    """One version of a published set."""

    name: str
    """Name of the set."""
    version: int
    """1 or more; grows with every publication under the same name."""
    created: datetime
    """When it was published (UTC)."""
    expires: datetime | None
    """When it must no longer be used (UTC); None: never."""
    info: SetInfo
    """Shape and normalisation of the set."""
    digests: Digests
    """sha256 of object, ranks, headers and subsets."""
    object_url: str
    """Where the whole object is, as the server names it."""
    network: Mapping[str, Any]
    """The network that was matched."""
    recipe: Mapping[str, Any]
    """How the networks of `accuracy` were trained."""
    accuracy: tuple[Accuracy, ...]
    """What was measured."""
    cost: Mapping[str, Cost]
    """Cost of training, by name of the network."""
    data_sha256: str | None = None
    """Of the real training images and labels, at the side and in the order that they were condensed in; None: not
    recorded. Other ones may have become test images since."""


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
    """A manifest as JSON values; `FormatError` names the field that no reader would accept.

    Times are ISO 8601 in UTC. Every row of `accuracy` has the fields of `Accuracy`; `cost` maps the name of a
    network to the fields of `Cost`.
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
    """The manifest that these JSON values are; `FormatError` names a missing or impossible field."""
    if not isinstance(document, Mapping):
        raise FormatError(f"a manifest is a JSON object, not {type(document).__name__}")
    version = document.get("manifest_version")
    if version != MANIFEST_VERSION:
        raise FormatError(
            f"manifest_version is {shown(version)}, but this release reads {MANIFEST_VERSION}: update it"
        )
    info = _info(document)
    stored = _take(document, "object", dict)
    if (encoding := _take(stored, "encoding", str, "object.")) != rankmajor.FORMAT:
        raise FormatError(
            f"object.encoding is {shown(encoding)}, but this release reads {rankmajor.FORMAT!r}"
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
    """The recipe, whose numbers that plans compute with are checked; the others are a matter of the training."""
    for key in {"epochs", "batch_size"} & recipe.keys():
        _whole(recipe, key, "recipe.")
    return recipe


def parse_accuracy(rows: Sequence[object], ipc: int) -> tuple[Accuracy, ...]:
    """The accuracy table of a set with `ipc` ranks; `FormatError` names a missing or impossible field."""
    return tuple(_accuracy(row, f"accuracy[{i}].", ipc) for i, row in enumerate(rows))


def _info(document: Mapping[str, Any]) -> SetInfo:
    """The set's shape, checked against the sizes that the manifest states for readers of other languages."""
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
        raise FormatError(f"the manifest describes no possible set: {error}") from None
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
    """The field `key`, which must have the JSON type `kind`."""
    value = document.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        found = "missing" if key not in document else shown(value)
        raise FormatError(f"{where}{key} is {found}: it should be of type {kind.__name__}")
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
        raise FormatError(f"{what} is {shown(value)}, but this set has {expected}")
