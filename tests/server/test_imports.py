from __future__ import annotations

import subprocess
import sys


def test_the_api_imports_neither_torch_nor_the_worker() -> None:
    code = "import sys, server.app, server.cli; print([n for n in ('torch', 'worker', 'sklearn') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
