"""Errors of the conversation with the server; all others are those of `mdc_core.errors`.

MdcError
├── UnreachableError   no answer, a broken connection, or a server that failed (5xx)
└── RefusedError       the server understood and said no (4xx)
"""

from __future__ import annotations

from mdc_core.errors import MdcError


class UnreachableError(MdcError):
    """The server did not answer, or not to the end; the same request may succeed later."""


class RefusedError(MdcError):
    """The server refused; `status` is the HTTP status and `code` the server's stable name of the problem."""

    def __init__(self, message: str, status: int, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
