"""Names that come from outside: of classes, data sets, keys. One rule for all of them. Knows no torch."""

from __future__ import annotations

import unicodedata

from mdc_core.errors import shown

MAX_NAME = 200
"""Characters of a name."""
MAX_CLASSES = 10_000
"""Classes of a data set."""


def normalised(name: str) -> str:
    """The name in Unicode's form NFC: file systems and archives write the same letters in different ways."""
    return unicodedata.normalize("NFC", name) if len(name) <= 4 * MAX_NAME else name


def name_fault(name: str) -> str | None:
    """What keeps a text from being a name, with what to do; None: nothing does."""
    if not name.strip():
        return "a name is empty: give every one some letters"
    if len(name) > MAX_NAME:
        return f"the name {shown(name)} has {len(name)} characters: shorten it to {MAX_NAME} at most"
    if not name.isprintable():  # nor are halves of surrogate pairs
        return f"the name {shown(name)} has characters that cannot be printed: leave them out"
    return None


def visible(name: str) -> str:
    """The name as it can be sent and drawn, whatever an earlier release let in: what is no text is escaped."""
    return name.encode("utf-8", "backslashreplace").decode()[: 4 * MAX_NAME]
