"""`python -m mdc_cli.run_with_parent MODULE ARGUMENTS`: run a module, and send it SIGTERM when standard input closes.

`mdc up` starts its children this way and holds the other end of the pipe, so they never outlive it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys

from mdc_core.system.parent import when_parent_ends


def main() -> None:
    """Run the module in this process."""
    when_parent_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
