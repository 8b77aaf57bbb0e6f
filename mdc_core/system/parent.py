"""Stop a process when its parent ends: the parent holds the other end of standard input."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable


def when_parent_ends(stop: Callable[[], None]) -> None:
    """Call `stop` in a thread once standard input is closed, however the parent ended."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        stop()

    threading.Thread(target=wait, daemon=True).start()
