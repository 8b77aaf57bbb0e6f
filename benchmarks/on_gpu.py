"""Everything that is to be measured on a GPU, in one command that goes on from call to call.

    python benchmarks/on_gpu.py cifar10.npz --minutes 9      # again and again, until it prints the published table

First the tests that need a GPU; then an inner iteration beside the literal update, with its breakdown by operator, for
both ends of n* and both reduced precisions; then an evaluation as one batch of models; then, for as long as there is
time, the published experiment (paper_run.py), which goes on in the next call. What is done is kept under --out and not
repeated. Prints Markdown last. `--toy` goes through all of it in minutes, on a CPU too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TOY_SCHEDULE = {
    "condense": {
        "ipc": 2,
        "outer_loops": 2,
        "inner_iterations": 1,
        "mls_period": 1,
        "n_data": 64,
        "network": {"width": 4},
    },
    "evaluate": {"epochs": 1, "repeats": 1},
}


def main() -> None:
    """Do what is missing, as far as the time goes, and print what is there."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    for name, command in steps(args).items():
        kept = args.out / f"{name}.txt"
        if kept.exists():
            continue
        if time.monotonic() > deadline:
            break
        print(f"{name}: {' '.join(command)}", file=sys.stderr)
        kept.write_text(output(name, command))
    else:
        print(paper(args, (deadline - time.monotonic()) / 60))
    print(table(args))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="CIFAR-10: what `mdc condense` takes")
    parser.add_argument("--out", type=Path, default=Path("runs/on_gpu"), help="folder for results")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call; no step is cut short")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="small networks and schedules")
    return parser.parse_args()


def steps(args: argparse.Namespace) -> dict[str, list[str]]:
    """Name and command of everything that is measured once."""
    pairs = ["--pairs", "1" if args.toy else "7", "--device", args.device]
    size = "--ipc 2 --width 4 --n-data 64 --batch-real 4" if args.toy else "--width 128 --n-data 2000"
    iteration = ["benchmarks/condense_step.py", *size.split(), *pairs]
    shape = "--ipc 2 --width 4 --epochs 1" if args.toy else "--shape cifar10 --width 128"
    most = "1" if args.toy else "9"
    return {
        # The folder's own conftest.py alone: those above it want the servers' packages.
        "tests": ["-m", "pytest", "tests/core/test_recorder.py", "--confcutdir=tests/core", "-rs"],
        "largest-subset-tf32": [*iteration, "--selected", most, "--precision", "tf32"],
        "smallest-subset-tf32": [*iteration, "--selected", "1", "--precision", "tf32"],
        "largest-subset-bf16": [*iteration, "--selected", most, "--precision", "bf16"],
        "evaluation": ["benchmarks/evaluate.py", *shape.split(), *pairs, "--precision", "tf32"],
    }


def paper(args: argparse.Namespace, minutes: float) -> str:
    """What paper_run.py prints after so many more minutes."""
    schedule: dict[str, dict[str, Any]] = TOY_SCHEDULE if args.toy else {"condense": {}, "evaluate": {}}
    settings = [
        part
        for name, values in schedule.items()
        for part in (f"--{name}", json.dumps({**values, "precision": "tf32"}))
    ]
    command = ["benchmarks/paper_run.py", "--data", args.data, "--out", str(args.out / "paper"), *settings]
    command += ["--device", args.device, "--minutes", str(max(0.0, minutes))]
    return output("paper_run.py", command)


def output(name: str, command: list[str]) -> str:
    """What a command of Python prints; the end when it fails."""
    run = [sys.executable, *command]
    ran = subprocess.run(run, check=False, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        raise SystemExit(
            f"{ran.stdout}\n{name} failed: {' '.join(command)}\nThe same call again goes on with it."
        )
    return ran.stdout


def table(args: argparse.Namespace) -> str:
    """Markdown: an iteration's milliseconds and ratios, its operators, and the evaluation's ratio."""
    rows, operators = [], []
    for name in steps(args):
        kept = args.out / f"{name}.txt"
        if not kept.exists():
            continue
        if name == "tests":
            rows.append(f"Tests: {kept.read_text().strip().splitlines()[-1]}\n")
            continue
        found = json.loads(kept.read_text())
        if name == "evaluation":
            rows.append(f"\nEvaluation at once against one by one: {found['ratio']} ({found['machine']})")
            continue
        if not operators:
            rows += ["| | ms | matching | training | iteration | unrecorded |", "|-|-|-|-|-|-|"]
        taken = found["median_seconds"]
        ratios = [
            "{median:.2f} ({min:.2f}–{max:.2f})".format(**found[f"{part}_speedup"])
            for part in ("matching", "network", "iteration")
        ]
        cells = [f"{1000 * (taken['engine'] + taken['network']):.1f}", *ratios, str(found["unrecorded"])]
        rows.append(f"| {name} | {' | '.join(cells)} |")
        operators.append(f"\n{name}, milliseconds by operator: {json.dumps(found['operators'])}")
    return "\n".join([*rows, *operators])


if __name__ == "__main__":
    main()
