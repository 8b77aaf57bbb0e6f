"""One rule for all names from users: of classes, data sets and keys. No torch."""

from __future__ import annotations

import unicodedata

from mdc_core.errors import shown

MAX_NAME = 200
"""Longest name in characters."""
MAX_CLASSES = 10_000
"""Most classes of a data set."""


def normalised(name: str) -> str:
    """The name in Unicode's NFC form, because file systems and archives encode the same letters differently."""
    return unicodedata.normalize("NFC", name) if len(name) <= 4 * MAX_NAME else name


def name_fault(name: str) -> str | None:
    """Why a text is not a valid name, and what to do; None if it is valid."""
    if not name.strip():
        return "a name is empty: use at least one letter"
    if len(name) > MAX_NAME:
        return f"the name {shown(name)} has {len(name)} characters: shorten it to {MAX_NAME} at most"
    if not name.isprintable():  # nor are halves of surrogate pairs
        return f"the name {shown(name)} has unprintable characters: remove them"
    return None


def visible(name: str) -> str:
    """The name in a form that can be sent and drawn; characters that earlier releases let in are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()[: 4 * MAX_NAME]
