"""Responses with subsets and ranks: which bytes, with which headers, from where."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog
from starlette.responses import Response, StreamingResponse

from mdc_core.delivery.budget import Budget, Plan, plan
from mdc_core.delivery.manifest import Manifest
from mdc_core.errors import BudgetError, ConfigError, DigestError
from server.delivery.catalog import Version
from server.delivery.rank_cache import WHOLE_BODY_BYTES, Piece, RankCache
from server.store.objects import ObjectStore
from server.web.conditional import Conditions, Decision, decide
from server.web.problems import FieldError, Problem, invalid
from server.web.store_threads import StoreThreads

MEDIA_TYPE = "application/octet-stream"
YEAR = 31_536_000
URL_SECONDS = 300
"""How long a signed URL of the object store works."""
EPOCHS = "MDC-Epochs"
"""Header of an answer whose k was chosen: how many epochs of training it was chosen for."""
VERDICT = "MDC-Verdict"
"""Header of an answer whose k was chosen: whether that subset is worth its bytes; see `mdc_core.delivery.verdict`."""
_WITH_REDIRECT = ("Content-Location", "Repr-Digest", EPOCHS, VERDICT)
UNREADABLE_SECONDS = 3600
"""An operator has to act before it is worth asking again."""
CHUNK = 64 * 1024
"""Bytes of a large body that are handed over at once."""


@dataclass(frozen=True)
class Answer:
    """A response before its bytes are read."""

    status: int
    headers: Mapping[str, str]
    k: int
    """The bytes are of the file of this subset."""
    span: tuple[int, int] | None = None
    """Which of its bytes, half open; None: no body."""
    in_store: bool = False
    """Whether the stored object has the same answer to the same Range header."""


def named_size(manifest: Manifest, wanted: str) -> int:
    """`wanted` as a k in 1..N.

    Raises:
        Problem: 404 if the set has no such subset.
    """
    return _whole(wanted, manifest.info.ipc, "subset")


def named_rank(manifest: Manifest, wanted: str) -> int:
    """`wanted` as an r in 1..N.

    Raises:
        Problem: 404 if the set has no such rank.
    """
    return _whole(wanted, manifest.info.ipc, "rank")


def choose_size(manifest: Manifest, wanted: str, fields: Mapping[str, str]) -> Plan:
    """The plan for `wanted` (1..N or `auto`) under the budget in the query `fields`.

    Raises:
        Problem: 404 if the set has no such subset, 422 if the budget is invalid, or too small for any subset.
    """
    return make_plan(manifest, fields, "query", None if wanted == "auto" else named_size(manifest, wanted))


def make_plan(manifest: Manifest, fields: Mapping[str, Any], where: str, at_most: int | None = None) -> Plan:
    """The plan for the budget in the query or JSON `fields`; `where` names them in errors.

    Raises:
        Problem: 422 if the budget is invalid, or too small for any subset.
    """
    try:
        return plan(manifest, Budget.from_mapping(fields), at_most)
    except BudgetError as error:
        raise Problem(
            422, "budget-too-small", str(error), extra={"resource": error.resource, "needed": error.needed}
        ) from error
    except ConfigError as error:
        raise invalid("invalid-budget", [FieldError(field=where, message=str(error))]) from error


def _whole(wanted: str, ipc: int, noun: str) -> int:
    """The number of a subset or a rank."""
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 10 and 1 <= int(wanted) <= ipc:
        return int(wanted)
    more = ", or ask for auto" if noun == "subset" else ""
    raise Problem(
        404,
        f"{noun}-out-of-range",
        f"there is no {noun} {wanted[:40]!r}: this set has the {noun}s 1..{ipc}{more}",
    )


def answer_subset(version: Version, k: int, conditions: Conditions, *, pinned: bool, head: bool) -> Answer:
    """Subset k, or a part of it.

    `pinned`: the request named the version, so the response never changes. `head`: without the body.

    Raises:
        Problem: 412 or 416; see `server.web.conditional`.
    """
    if head:
        conditions = conditions._replace(range=None)
    decision = decide_subset(version, k, conditions)
    answer = decided_subset(version, k, decision, pinned=pinned)
    if answer.span is None:
        return answer
    return replace(
        answer, span=None if head else answer.span, in_store=in_store(version, k, conditions, decision)
    )


def decide_subset(version: Version, k: int, conditions: Conditions) -> Decision:
    """What to send of subset k. Raises like `decide`."""
    return decide(conditions, _etag(version.manifest.digests.subsets[k - 1]), version.length(k))


def decided_subset(version: Version, k: int, decision: Decision, *, pinned: bool) -> Answer:
    """Subset k, or a part of it."""
    length = version.length(k)
    headers = _headers(version, version.manifest.digests.subsets[k - 1], pinned)
    headers |= {"Content-Location": f"{version.path}/subsets/{k}", "Accept-Ranges": "bytes"}
    if decision.status == 304:
        return Answer(304, headers, k)
    start, end = decision.part or (0, length)
    headers |= {"Content-Length": str(end - start), "Content-Type": MEDIA_TYPE}
    if decision.part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{length}"
    return Answer(decision.status, headers, k, (start, end))


def answer_rank(version: Version, r: int, conditions: Conditions, *, pinned: bool, head: bool) -> Answer:
    """A whole rank, always with 200, for browsers and clients that cannot keep partial responses.

    Raises:
        Problem: 412 if If-Match names another rank.
    """
    answer = decided_rank(version, r, decide_rank(version, r, conditions), pinned=pinned)
    return replace(answer, span=None) if head else answer


def decide_rank(version: Version, r: int, conditions: Conditions) -> Decision:
    """What to send of rank r: all of it or nothing. Raises like `decide`."""
    etag = _etag(version.manifest.digests.ranks[r - 1])
    return decide(conditions._replace(range=None), etag, version.rank_bytes)


def decided_rank(version: Version, r: int, decision: Decision, *, pinned: bool) -> Answer:
    """Rank r."""
    ipc = version.manifest.info.ipc
    headers = _headers(version, version.manifest.digests.ranks[r - 1], pinned)
    headers |= {"Content-Location": f"{version.path}/ranks/{r}", "Accept-Ranges": "none"}
    if decision.status == 304:
        return Answer(304, headers, ipc)
    start, end = version.length(r - 1), version.length(r)
    headers |= {
        "Content-Length": str(end - start),
        "Content-Type": MEDIA_TYPE,
        "Content-Digest": headers["Repr-Digest"],
    }
    return Answer(200, headers, ipc, (start, end))


def _etag(digest: str) -> str:
    return f'"{digest}"'


def _headers(version: Version, digest: str, pinned: bool) -> dict[str, str]:
    """The headers of every response with bytes of this sha256 (hexadecimal)."""
    control = f"immutable, max-age={YEAR}, no-transform" if pinned else "max-age=60, no-transform"
    return {
        "ETag": _etag(digest),
        "Cache-Control": f"private, {control}",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:",
    }


def in_store(version: Version, k: int, conditions: Conditions, decision: Decision) -> bool:
    """Whether the object store would serve this request with the same bytes.

    It is the file of subset N. Of a smaller subset it has the ranks at the same place, but another header, and it
    is longer: a range must say where it ends. The store does not know our entity tags.
    """
    if conditions.if_match is not None or conditions.if_range is not None:
        return False
    if k == version.manifest.info.ipc:
        return True
    start, end = decision.part or (0, version.length(k))
    closed = f"bytes={start}-{end - 1}"
    return start >= version.header_bytes and (conditions.range or "").strip().lower() == closed


async def send(
    version: Version,
    answer: Answer,
    *,
    ranks: RankCache,
    objects: ObjectStore,
    threads: StoreThreads,
    redirects: bool,
) -> Response:
    """The response with its bytes: from memory, from the object store, or (`redirects`) as a redirect to it."""
    if answer.span is None:
        return Response(status_code=answer.status, headers=answer.headers)
    if answer.in_store and redirects:
        url = await threads.run(objects.url, version.object_key, URL_SECONDS)
        if url is not None:
            return _redirect(url, answer)
    pieces: Iterable[Piece] | None = ranks.warm(version, answer.k, *answer.span)
    if pieces is None:
        try:
            pieces = await threads.run(ranks.read, version, answer.k, *answer.span)
        except (FileNotFoundError, DigestError) as error:
            raise unreadable(version, error) from error
    if isinstance(pieces, list):
        return respond(answer, pieces)
    return StreamingResponse(threads.each(iter(pieces)), answer.status, answer.headers)


def unreadable(version: Version, error: Exception) -> Problem:
    """The response if the stored object is missing or not the published one. Logs an error for the operator."""
    what = "missing" if isinstance(error, FileNotFoundError) else "damaged"
    structlog.get_logger().error(
        f"the object of a set is {what}: run python -m server.cli verify-objects",
        key=version.object_key,
        set=version.path,
        error=repr(error),
    )
    return Problem(
        503,
        "set-unreadable",
        f"the stored bytes of {version.row.name}@{version.row.version} are {what}: its operator has been told; use "
        "another version meanwhile",
        headers={"Retry-After": str(UNREADABLE_SECONDS)},
    )


def respond(answer: Answer, pieces: list[Piece]) -> Response:
    """A response from bytes in memory."""
    chunks = in_chunks(pieces)
    if len(chunks) == 1:
        return Response(chunks[0], answer.status, answer.headers)
    return StreamingResponse(_each(chunks), answer.status, answer.headers)


def _redirect(url: str, answer: Answer) -> Response:
    kept = {name: answer.headers[name] for name in _WITH_REDIRECT if name in answer.headers}
    headers = {"Location": url, "Cache-Control": "no-store", **kept}
    return Response(status_code=302, headers=headers)


async def _each(chunks: list[Piece]) -> AsyncIterator[Piece]:
    for chunk in chunks:
        yield chunk


def in_chunks(pieces: list[Piece]) -> list[Piece]:
    """The same bytes in at least one chunk: a single one up to `WHOLE_BODY_BYTES`, else pieces of about `CHUNK`.

    Chunks of a large piece are views. A connection copies what its socket does not take of one chunk, so that is all
    the memory that it holds, however slow its reader is.
    """
    if len(pieces) == 1 and len(pieces[0]) <= WHOLE_BODY_BYTES:
        return pieces
    if sum(map(len, pieces)) <= WHOLE_BODY_BYTES:
        return [b"".join(pieces)]
    chunks: list[Piece] = []
    small: list[Piece] = []
    for piece in pieces:
        for first in range(0, len(piece), CHUNK):
            part = memoryview(piece)[first : first + CHUNK]
            if sum(map(len, small)) + len(part) > CHUNK:
                chunks.append(small[0] if len(small) == 1 else b"".join(small))
                small = []
            small.append(part)
    return [*chunks, small[0] if len(small) == 1 else b"".join(small)]
