"""Two `mdc-device` processes in any mixture of commands on one file: nobody is told a wrong thing, no file is broken.

    python -m benchmarks.one_file [--rounds 1000] [--seed 0] [--trains 0.02]

A small set is published by a real API on loopback. Each round starts two random commands (fetch, grow, shrink, verify,
status, and in a share of --trains also train, which loads torch) together, and in one of three rounds one is killed at
a random moment. Meanwhile the file is opened with safetensors again and again. It must be readable each time and, after
every round, be a subset to the byte, of a size that the commands tell: what one of them says it made, or checked, must
have been there. Commands end with no traceback, and with an exit code that says what happened. Prints JSON; status 1
when anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from benchmarks.machine import machine
from benchmarks.published import publish
from benchmarks.serve_subset import SMALL, api
from mdc_core.delivery import rankmajor
from mdc_core.delivery.budget import convnet_cost

LONGEST = 0.6
"""Seconds within which a kill comes."""
DONE, BUSY, KILLED = 0, 7, -9
WRONG_SIZE = 2
"""A growth to what the file has more than already, and the like."""
CHANGES = frozenset({"fetch", "grow", "shrink"})


@dataclass
class Command:
    """One process, and what became of it."""

    words: list[str]
    process: subprocess.Popen[bytes]
    code: int = 0
    out: bytes = b""
    err: bytes = b""

    @property
    def name(self) -> str:
        """What it does."""
        return self.words[0]

    @property
    def k(self) -> int:
        """The size that it was to make; 0 when none."""
        return int(self.words[self.words.index("--k") + 1]) if "--k" in self.words else 0

    def finish(self) -> None:
        """Wait for its end."""
        self.out, self.err = self.process.communicate()
        self.code = self.process.returncode


def draw(url: str, file: Path, drawn: random.Random, trains: float) -> list[str]:
    """A command's words."""
    if drawn.random() < trains:
        return ["train", str(file), "--epochs", "1", "--json"]
    k = str(drawn.randint(1, SMALL.ipc))
    return [
        *drawn.choice(
            [
                ["fetch", url, "toy", "--to", str(file), "--k", k],
                ["grow", str(file), "--k", k],
                ["shrink", str(file), "--k", k],
                ["verify", str(file)],
                ["verify", str(file), "--repair"],
                ["status", str(file)],
            ]
        ),
        "--json",
    ]


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trains", type=float, default=0.02)
    args = parser.parse_args()
    drawn = random.Random(args.seed)
    codes: Counter[str] = Counter()
    faults: list[str] = []
    opened = 0
    began = time.monotonic()
    network = {"name": "convnet", "depth": 2, "width": 8}
    facts = {
        "network": network,
        "recipe": {"network": network, "epochs": 1},
        "cost": {"convnet-d2-w8": convnet_cost(2, 8, 3, SMALL.image_size, len(SMALL.classes))},
    }
    with tempfile.TemporaryDirectory() as name:
        key, packed = publish(Path(name) / "data", {"toy": SMALL}, **facts)
        subsets = {rankmajor.subset(packed["toy"], SMALL, k): k for k in range(1, SMALL.ipc + 1)}
        with api(Path(name)) as (_, url):
            file = Path(name) / "set"
            start(key, ["fetch", url, "toy", "--to", str(file), "--k", "2"]).process.wait()
            before = 2
            for number in range(args.rounds):
                commands = [start(key, draw(url, file, drawn, args.trains)) for _ in range(2)]
                kill_at = time.monotonic() + drawn.random() * LONGEST if drawn.random() < 1 / 3 else None
                while any(command.process.poll() is None for command in commands):
                    if kill_at is not None and time.monotonic() >= kill_at:
                        commands[0].process.kill()
                        kill_at = None
                    opened += 1
                    if fault := unreadable(file):
                        faults.append(f"round {number}: meanwhile: {fault}")
                    time.sleep(0.002)
                after = subsets.get(file.read_bytes(), 0)
                for command in commands:
                    command.finish()
                    codes[f"{command.name} {command.code}"] += 1
                told = [f"{command.words} gave {command.code}" for command in commands]
                faults += [f"round {number}: {told}: {fault}" for fault in judged(commands, before, after)]
                before = after or before
    print(
        json.dumps(
            {
                "what": "two mdc-device processes on one file",
                "rounds": args.rounds,
                "seed": args.seed,
                "machine": machine(),
                "seconds": round(time.monotonic() - began, 1),
                "opened_meanwhile": opened,
                "codes": dict(sorted(codes.items())),
                "faults": faults[:20],
                "fault_count": len(faults),
            },
            indent=1,
        )
    )
    sys.exit(bool(faults))


def start(key: str, words: list[str]) -> Command:
    """`mdc-device` as a process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mdc_device", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"MDC_KEY": key},
    )
    return Command(words, process)


def judged(commands: list[Command], before: int, after: int) -> list[str]:
    """What is wrong with a round that found subset `before` and left `after` (0: no subset)."""
    faults = [] if after else ["the file is no subset"]
    made = [c for c in commands if c.name in CHANGES and c.code == DONE]
    cut_short = [c for c in commands if c.name in CHANGES and c.code == KILLED]
    if after not in {c.k for c in (made or cut_short)} | {c.k for c in cut_short} | (
        set() if made else {before}
    ):
        faults.append(f"subset {before} became {after}, which no command has made")
    possible = {before, *(c.k for c in commands if c.name in CHANGES and c.code in (DONE, KILLED))}
    for command in commands:
        expected = {DONE, BUSY, KILLED} | ({WRONG_SIZE} if command.name in ("grow", "shrink") else set())
        if command.code not in expected or b"Traceback" in command.err:
            faults.append(f"{command.name}: {command.err.decode(errors='replace')[-300:]}")
        elif command.code == DONE:
            told = json.loads(command.out)["k"]
            right = {command.k} if command.name in CHANGES else possible
            if told not in right:
                faults.append(f"{command.name} told of subset {told}, but it can only have been {right}")
    return faults


def unreadable(file: Path) -> str | None:
    """Why safetensors does not open the file; None: it does."""
    try:
        with safe_open(file, "np") as opened:
            opened.get_slice("tiles").get_shape()
    except Exception as error:
        return f"safetensors: {error}"
    return None


if __name__ == "__main__":
    main()
