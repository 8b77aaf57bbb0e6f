"""What the stores raise when they do not answer; it passes by itself, or when an operator acts."""

from __future__ import annotations

from obstore.exceptions import BaseError
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError

STORE_ERRORS = (OperationalError, InterfaceError, TimeoutError, BaseError)
"""Of the database, and of a remote object store. A folder's are those of the operating system: `OSError`."""
