"""When to try again: exponential backoff with full jitter, and the server's own wish (Retry-After)."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from mdc_core.errors import MdcError
from mdc_device.errors import RefusedError, UnreachableError

FIRST_S = 0.5
"""Longest wait before the first retry, in seconds; it doubles with every further failure."""
MOST_S = 30.0
"""Longest wait of all. A server that asks for more is not waited for."""
TOO_MANY = 429


@dataclass
class Patience:
    """The attempts of one operation; `retries` is how many may follow a failure without any progress."""

    retries: int
    failed: int = 0
    """Failures since the last progress."""

    def again(self, error: MdcError, progressed: bool = False) -> None:
        """Return after a wait if another attempt is worth it; raise `error` if not.

        Progress forgets the failures before it: a bad line that delivers something every time does arrive.
        """
        if progressed:
            self.failed = 0
        wished = _wished_wait(error)
        if wished is None or wished > MOST_S or self.failed >= self.retries:
            raise error
        self.failed += 1
        # Jitter over the whole span: many devices that lost the same server must not return together.
        time.sleep(max(wished, random.uniform(0.0, min(MOST_S, FIRST_S * 2.0 ** (self.failed - 1)))))


def _wished_wait(error: MdcError) -> float | None:
    """The seconds that the server asks for, 0 when it does not; None when trying again is of no use."""
    if isinstance(error, UnreachableError) or (isinstance(error, RefusedError) and error.status == TOO_MANY):
        return error.retry_after or 0.0
    return None
