"""Two `mdc-device` processes in any mixture of commands on one file: nobody is told a wrong thing, no file is broken.

    python benchmarks/one_file.py [--rounds 1000] [--seed 0]

A small set is published by a real API on loopback. Each round starts two random commands (fetch, grow, shrink, verify,
status) together, and in one of three rounds one is killed at a random moment. After every round the file must be
readable by safetensors and be, to the byte, a subset; commands end with no traceback, and with an exit code that says
what happened. Prints JSON; status 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from published import publish
from safetensors import safe_open
from serve_subset import SMALL, api

from mdc_core import rankmajor

LONGEST = 0.6
"""Seconds that a command may take; a kill comes within them."""
EXPECTED = {0, 2, 7, -9}
"""Done, a size that does not fit, busy, killed."""


def command(url: str, file: Path, drawn: random.Random) -> list[str]:
    """A command's words."""
    k = str(drawn.randint(1, SMALL.ipc))
    return drawn.choice(
        [
            ["fetch", url, "toy", "--to", str(file), "--k", k],
            ["grow", str(file), "--k", k],
            ["shrink", str(file), "--k", k],
            ["verify", str(file)],
            ["verify", str(file), "--repair"],
            ["status", str(file)],
        ]
    )


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    drawn = random.Random(args.seed)
    codes: Counter[str] = Counter()
    faults: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        key, packed = publish(Path(name) / "data", {"toy": SMALL})
        with api(Path(name)) as (_, url):
            file = Path(name) / "set"
            first = ["fetch", url, "toy", "--to", str(file), "--k", "2"]
            start(key, first).communicate()
            for number in range(args.rounds):
                words = [command(url, file, drawn) for _ in range(2)]
                running = [start(key, given) for given in words]
                if drawn.random() < 1 / 3:
                    time.sleep(drawn.random() * LONGEST)
                    running[0].kill()
                for given, process in zip(words, running, strict=True):
                    out, err = process.communicate()
                    codes[f"{given[0]} {process.returncode}"] += 1
                    is_silent = process.returncode == 0 and not out
                    if process.returncode not in EXPECTED or b"Traceback" in err or is_silent:
                        told = err.decode(errors="replace")[-300:]
                        faults.append(f"round {number}: {given} gave {process.returncode}: {told}")
                if fault := broken(file, packed["toy"]):
                    faults.append(f"round {number}: after {words}: {fault}")
    print(
        json.dumps(
            {
                "what": "two mdc-device processes on one file",
                "rounds": args.rounds,
                "seed": args.seed,
                "machine": platform.platform(),
                "seconds": round(time.monotonic() - began, 1),
                "codes": dict(sorted(codes.items())),
                "faults": faults[:20],
                "fault_count": len(faults),
            },
            indent=1,
        )
    )
    sys.exit(bool(faults))


def start(key: str, given: list[str]) -> subprocess.Popen[bytes]:
    """`mdc-device` as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "mdc_device", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"MDC_KEY": key},
    )


def broken(file: Path, packed: bytes) -> str | None:
    """What is wrong with the file; None: nothing."""
    try:
        with safe_open(file, "np") as opened:
            k = len(np.asarray(opened.get_tensor("tiles")))
    except Exception as error:
        return f"safetensors: {error}"
    is_subset = file.read_bytes() == rankmajor.subset(packed, SMALL, k)
    return None if is_subset else f"not the bytes of subset {k}"


if __name__ == "__main__":
    main()
