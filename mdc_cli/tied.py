"""`python -m mdc_cli.tied MODULE ARGUMENTS`: run a module that stops as by SIGTERM when its standard input ends.

So that what `mdc up` has started does not outlive it, however it ends: it holds the other end of the pipe.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    """Run the module in this process."""
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _stop_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
