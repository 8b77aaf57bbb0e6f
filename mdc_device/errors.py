"""Errors of the conversation with the server; all others are those of `mdc_core.errors`.

MdcError
├── UnreachableError   no answer, a broken connection, or a server that failed (5xx)
├── RefusedError       the server understood and said no (4xx)
├── BusyError          another process is at the file
└── FormatError
    └── RollbackError  the server offers an older state of a set than this device has seen
"""

from __future__ import annotations

from mdc_core.errors import FormatError, MdcError


class UnreachableError(MdcError):
    """The server did not answer, or not to the end; the same request may succeed later.

    `retry_after` is the number of seconds that the server asked for, or None.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RefusedError(MdcError):
    """The server refused; `status` is the HTTP status and `code` the server's stable name of the problem."""

    def __init__(
        self, message: str, status: int, code: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after


class BusyError(MdcError):
    """Another process reads or changes the file; nothing was done."""


class RollbackError(FormatError):
    """A manifest that is older than the one seen before, or another one under the same version."""
