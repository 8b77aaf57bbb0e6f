"""When to retry: exponential backoff with full jitter, and the server's own request (Retry-After)."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from mdc_core.errors import MdcError
from mdc_device.errors import RefusedError, UnreachableError

FIRST_S = 0.5
"""Longest wait before the first retry, in seconds; it doubles with every further failure."""
MOST_S = 30.0
"""Longest wait of all, in seconds. If a server asks for more, there is no retry."""
TOO_MANY = 429


@dataclass
class Backoff:
    """The attempts of one operation; up to `retries` may follow a failure without progress."""

    retries: int
    failed: int = 0
    """Failures since the last progress."""

    def wait_or_raise(self, error: MdcError, progressed: bool = False) -> None:
        """Wait before another attempt, or raise `error` if none is worthwhile.

        Progress resets the count: a bad connection that delivers something every time finishes in the end.
        """
        if progressed:
            self.failed = 0
        requested = _requested_wait(error)
        if requested is None or requested > MOST_S or self.failed >= self.retries:
            raise error
        self.failed += 1
        # Full jitter: many devices that lost the same server must not return at the same moment.
        time.sleep(max(requested, random.uniform(0.0, min(MOST_S, FIRST_S * 2.0 ** (self.failed - 1)))))


def _requested_wait(error: MdcError) -> float | None:
    """The seconds that the server asks for, 0 if it does not; None if a retry cannot help."""
    if isinstance(error, UnreachableError) or (isinstance(error, RefusedError) and error.status == TOO_MANY):
        return error.retry_after or 0.0
    return None
