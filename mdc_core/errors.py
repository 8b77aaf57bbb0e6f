"""The error tree: every error that this package raises on purpose.

MdcError
├── ConfigError    a setting is out of range, or contradicts another
├── DataError      a data set is broken, empty or unlabelled; names the file or class
├── FormatError    a stored file (rankmajor, manifest, checkpoint) is damaged or of an unknown version
│   ├── DigestError    bytes do not match their sha256
│   └── SignatureError a manifest is not signed by a trusted key
└── BudgetError    no subset fits the budget; names the limiting resource and the least that would fit
"""

from __future__ import annotations


def shown(value: object, most: int = 80) -> str:
    """A wrong value for an error message: its `repr`, shortened to `most` characters."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= most else text[: most - 1] + "…"


class MdcError(Exception):
    """Base of every error raised on purpose; its message says what to do next."""


class ConfigError(MdcError, ValueError):
    """A setting is out of range, or contradicts another. A `ValueError`, so pydantic reports it per field."""


class DataError(MdcError):
    """A data set is unusable; the message names the file or class."""


class FormatError(MdcError):
    """A stored file is damaged, or of a version that this release does not know."""


class DigestError(FormatError):
    """Bytes do not match their sha256; `ranks` are the 1-based ranks to fetch again."""

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks


class SignatureError(FormatError):
    """A manifest's signature cannot be verified with a trusted key: the manifest must not be used."""


class BudgetError(MdcError):
    """No subset fits: `resource` is the limit that excludes even the smallest, `needed` the least that would fit."""

    def __init__(self, message: str, resource: str, needed: float) -> None:
        super().__init__(message)
        self.resource = resource
        self.needed = needed
