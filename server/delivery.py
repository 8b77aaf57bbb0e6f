"""The file of a subset on its way to a device: header(k), then one range of one object."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from mdc_core import rankmajor
from mdc_core.budget import Budget, plan
from mdc_core.errors import BudgetError, ConfigError
from mdc_core.manifest import Manifest, parse_manifest
from server.conditional import byte_range, matches
from server.problems import FieldError, Problem, invalid
from server.store.objects import ObjectStore
from server.store.tables import CondensedSet

MEDIA_TYPE = "application/octet-stream"
YEAR = 31_536_000


@dataclass(frozen=True)
class Conditions:
    """What a request asks of the representation; the texts of the headers, None where absent."""

    range: str | None
    if_range: str | None
    if_match: str | None
    if_none_match: str | None


@dataclass(frozen=True)
class Answer:
    """A response: an empty `body` for 304 and HEAD."""

    status: int
    headers: Mapping[str, str]
    body: Iterator[bytes]


def choose_size(manifest: Manifest, wanted: str, fields: Mapping[str, str]) -> int:
    """k: what is `wanted` (1..N or `auto`), lowered to what the budget in the query `fields` affords.

    Raises:
        Problem: 404 when the set has no such subset, 422 when the budget is wrong, or too small for any.
    """
    ipc = manifest.info.ipc
    at_most = None if wanted == "auto" else _whole(wanted, ipc)
    try:
        if at_most is not None and not fields:
            return at_most
        return plan(manifest, Budget.from_mapping(fields), at_most).k
    except BudgetError as error:
        raise Problem(
            422, "budget-too-small", str(error), extra={"resource": error.resource, "needed": error.needed}
        ) from error
    except ConfigError as error:
        raise invalid("invalid-budget", [FieldError(field="query", message=str(error))]) from error


def _whole(wanted: str, ipc: int) -> int:
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 10 and 1 <= int(wanted) <= ipc:
        return int(wanted)
    raise Problem(
        404,
        "subset-out-of-range",
        f"there is no subset {wanted[:40]!r}: this set has the subsets 1..{ipc}, or ask for auto",
    )


def deliver(
    row: CondensedSet,
    wanted: str,
    fields: Mapping[str, str],
    conditions: Conditions,
    objects: ObjectStore,
    *,
    pinned: bool,
    head: bool,
) -> Answer:
    """Subset `wanted` of a published version, or a part of it.

    `pinned` says that the request named the version, so that the answer will never change. `head` leaves out the
    body. The object store is touched only when bytes of it are sent.

    Raises:
        Problem: 404, 412, 416 or 422; see `choose_size` and `server.conditional`.
    """
    manifest = parse_manifest(row.manifest)
    k = choose_size(manifest, wanted, fields)
    digest = manifest.digests.subsets[k - 1]
    length = rankmajor.subset_size(manifest.info, k)
    etag = f'"{digest}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, "
        + (f"immutable, max-age={YEAR}, no-transform" if pinned else "max-age=60, no-transform"),
        "Content-Location": f"/v1/sets/{row.name}@{row.version}/subsets/{k}",
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:",
    }
    if conditions.if_match is not None and not matches(conditions.if_match, etag, weak=False):
        raise Problem(
            412,
            "precondition-failed",
            f"If-Match names another file than subset {k} of {row.name}@{row.version}, whose ETag is {etag}",
        )
    if conditions.if_none_match is not None and matches(conditions.if_none_match, etag, weak=True):
        return Answer(304, headers, iter(()))
    part = None if head else byte_range(conditions.range, conditions.if_range, etag, length)
    start, end = part or (0, length)
    headers |= {"Content-Length": str(end - start), "Content-Type": MEDIA_TYPE}
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{length}"
    body = iter(()) if head else _body(objects, row.object_key, manifest.info, k, start, end)
    return Answer(200 if part is None else 206, headers, body)


def _body(
    objects: ObjectStore, key: str, info: rankmajor.SetInfo, k: int, start: int, end: int
) -> Iterator[bytes]:
    """Bytes [start, end) of the file of subset k; the payload has the same offsets in file and object."""
    size = rankmajor.header_size(info)
    head = rankmajor.header(info, k)[start:end]
    payload = objects.stream(key, max(start, size), max(end, size))
    return chain((head,), payload) if head else payload
