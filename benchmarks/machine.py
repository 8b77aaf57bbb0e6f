"""What a report says of the machine that it was measured on."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Literal


def machine(gpu: object = None) -> str:
    """Processor or GPU, cores, load, and versions; of torch and its threads only where it is in use."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and str(gpu).startswith("cuda")
    parts = [
        torch.cuda.get_device_name(gpu) if torch is not None and on_gpu else platform.machine(),
        f"{os.cpu_count()} cores",
        f"load {os.getloadavg()[0]:.1f}",
        f"Python {platform.python_version()}",
    ]
    if torch is not None:
        parts += [f"torch {torch.__version__}", f"{torch.get_num_threads()} threads"]
    return ", ".join(parts)


def memory_bytes(pid: int, what: Literal["VmRSS", "VmHWM"] = "VmRSS") -> int:
    """Resident memory of a process now (VmRSS), or at most so far (VmHWM), in bytes (Linux).

    Raises `ProcessLookupError` if the process has ended.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError as error:
        raise ProcessLookupError(f"process {pid} has ended: see its log") from error
    for line in lines:
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has ended: see its log")
