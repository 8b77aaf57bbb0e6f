"""Ranges, conditional requests and content negotiation (RFC 9110), as pure functions of header values."""

from __future__ import annotations

import re
from typing import NamedTuple

from server.web.problems import Problem

LONGEST = 4096
"""Maximum length of a conditional header. Longer ones are refused."""

_RANGE = re.compile(r"bytes=\s*(?:(\d+)-(\d*)|-(\d+))\s*", re.IGNORECASE)
_WEIGHT = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")
_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_DIGITS = 18
"""Maximum decimal digits of a position in a file. More are beyond the end of any file."""


class Conditions(NamedTuple):
    """The conditional headers of a request; None if absent."""

    range: str | None = None
    if_range: str | None = None
    if_match: str | None = None
    if_none_match: str | None = None


class Decision(NamedTuple):
    """The outcome of the conditions. It holds none of the caller's text, so it can be a cache key."""

    status: int
    """200, 206 or 304."""
    part: tuple[int, int] | None = None
    """Half-open byte range; None: all bytes."""


def decide(conditions: Conditions, etag: str, length: int) -> Decision:
    """What to send of a representation of `length` bytes.

    Raises:
        Problem: 412 if If-Match names another representation, 416 for a range beyond the end.
    """
    if conditions.if_match is not None and not matches(conditions.if_match, etag, weak=False):
        raise Problem(
            412, "precondition-failed", f"If-Match names other bytes than these, whose ETag is {etag}"
        )
    if conditions.if_none_match is not None and matches(conditions.if_none_match, etag, weak=True):
        return Decision(304)
    part = byte_range(conditions.range, conditions.if_range, etag, length)
    return Decision(200 if part is None else 206, part)


def matches(header: str, etag: str, *, weak: bool) -> bool:
    """Whether a list of entity tags (or `*`) contains `etag`.

    `weak` compares as for If-None-Match. Otherwise a weak tag never matches, as for If-Match (section 8.8.3.2).
    """
    if header.strip() == "*":
        return True
    return any(tag == etag and (weak or not is_weak) for is_weak, tag in _TAG.findall(header))


def byte_range(header: str | None, if_range: str | None, etag: str, length: int) -> tuple[int, int] | None:
    """The half-open range of a Range header; None: send everything.

    Other units, multiple ranges and invalid ranges are ignored, as section 14.2 allows. So is any range if If-Range
    does not name `etag`. Raises `Problem` 416 for a range beyond the end.
    """
    if header is None or (if_range is not None and if_range.strip() != etag):
        return None
    parsed = _RANGE.fullmatch(header.strip())
    if parsed is None:
        return None
    first, last, suffix = parsed.groups()
    if suffix is not None:
        start, end = max(0, length - _position(suffix)), length
    else:
        start, end = _position(first), length
        if last:
            if _position(last) < start:
                return None
            end = min(length, _position(last) + 1)
    if start >= end:
        raise Problem(
            416,
            "range-not-satisfiable",
            f"the range {header[:80]!r} is beyond the {length} bytes: they are numbered 0..{length - 1}",
            headers={"Content-Range": f"bytes */{length}", "Accept-Ranges": "bytes"},
        )
    return start, end


def _position(digits: str) -> int:
    """The position. Numbers too long for any file are capped, as `int` of huge text is slow."""
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _DIGITS else 10**_DIGITS


def prefers(accept: str | None, other: str, default: str) -> bool:
    """Whether an Accept header prefers the media type `other`, or weighs it as much as `default` (section 12.5.1).

    A wildcard never selects `other`: clients that do not know it get the default.
    """
    weights: dict[str, float] = {}
    for entry in (accept or "").split(","):
        media_type, *parameters = (part.strip().lower() for part in entry.split(";"))
        weights[media_type] = next((_weight(text[2:]) for text in parameters if text.startswith("q=")), 1.0)
    wanted = weights.get(other, 0.0)
    return wanted > 0 and wanted >= weights.get(default, 0.0)


def _weight(text: str) -> float:
    return float(text) if _WEIGHT.fullmatch(text) else 0.0
