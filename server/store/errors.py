"""Errors of a database or object store that is unavailable. They pass, or need an operator."""

from __future__ import annotations

from obstore.exceptions import BaseError
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError

STORE_ERRORS = (OperationalError, InterfaceError, TimeoutError, BaseError)
"""Errors of the database and of a remote object store. A folder raises `OSError`."""
