"""Errors in talking to the server; all other errors are in `mdc_core.errors`.

MdcError
├── UnreachableError   no response, a broken connection, or a server error (5xx)
├── RefusedError       the server refused the request (4xx)
├── BusyError          another process uses the file
└── FormatError
    └── RollbackError  the server offers an older version of a set than this device has seen
"""

from __future__ import annotations

from mdc_core.errors import FormatError, MdcError


class UnreachableError(MdcError):
    """The server sent no complete response; the same request may succeed later.

    `retry_after` is the wait in seconds that the server asked for, or None.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RefusedError(MdcError):
    """The server refused; `status` is the HTTP status and `code` the server's stable name for the problem."""

    def __init__(
        self, message: str, status: int, code: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after


class BusyError(MdcError):
    """Another process is reading or changing the file; nothing was done."""


class RollbackError(FormatError):
    """A manifest older than the one seen before, or a different one under the same version."""
