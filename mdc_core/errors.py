"""The error tree: everything that this package raises on purpose.

MdcError
├── ConfigError    a setting is out of its range, or two settings contradict each other
├── DataError      a data set is broken, empty or unlabelled; names the file or the class
├── FormatError    a stored file (rankmajor, manifest, checkpoint) is damaged or of an unknown version
│   ├── DigestError    bytes do not have the sha256 that was promised for them
│   └── SignatureError a manifest is not signed, or not by a key that is trusted
└── BudgetError    no subset fits the budget; names the limiting resource and the least that would do
"""

from __future__ import annotations


def shown(value: object, most: int = 80) -> str:
    """A wrong value as an error shows it: its `repr`, but never long, whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no whole number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= most else text[: most - 1] + "…"


class MdcError(Exception):
    """Base of every error raised on purpose; its message says what to do next."""


class ConfigError(MdcError, ValueError):
    """A setting is out of its range, or contradicts another. A `ValueError`, so pydantic reports it per field."""


class DataError(MdcError):
    """A data set cannot be used as it is; the message names the file or the class."""


class FormatError(MdcError):
    """A stored file is damaged, or of a version that this release does not know."""


class DigestError(FormatError):
    """Bytes whose sha256 is not the promised one; `ranks` are the 1-based ranks to fetch again."""

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks


class SignatureError(FormatError):
    """A manifest whose signature cannot be checked, or is not that of a trusted key: it must not be used."""


class BudgetError(MdcError):
    """No subset fits: `resource` is the limit that excludes even the smallest, `needed` the least that would do."""

    def __init__(self, message: str, resource: str, needed: float) -> None:
        super().__init__(message)
        self.resource = resource
        self.needed = needed
