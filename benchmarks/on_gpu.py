"""Everything that is to be measured on a GPU, in one command that goes on from call to call.

    python -m benchmarks.on_gpu cifar10.npz --minutes 9      # again and again, until it prints the published table

First the tests that need a GPU; then an inner iteration beside the literal update, with its breakdown by operator, for
both ends of n* and both reduced precisions; then the two parts of feature matching; then an evaluation as one batch of
models; then, for as long as there is time, the published experiment (paper_run.py), which goes on in the next call.
What is done is kept under --out with its command, and repeated only where that has changed; a test that fails is told
and holds nothing up. Prints Markdown last. `--toy` goes through all of it in a minute, on a CPU too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
TOY_SCHEDULE: dict[str, dict[str, Any]] = {
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
    found: dict[str, str] = {}
    for name, command in steps(args).items():
        kept = args.out / f"{name}.json"
        done = json.loads(kept.read_text()) if kept.exists() else {}
        if done.get("command") != command:
            if time.monotonic() > deadline:
                break
            print(f"{name}: {' '.join(command)}", file=sys.stderr)
            done = {"command": command, "output": output(name, command)}
            kept.write_text(json.dumps(done))
        found[name] = done["output"]
    else:
        print(paper(args, (deadline - time.monotonic()) / 60))
    print(table(found))


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
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch sees no GPU here: --toy --device cpu goes through all of it without one")
    args.out = args.out.resolve()  # commands run in the repository
    if Path(args.data).exists():
        args.data = str(Path(args.data).resolve())
    elif Path(args.data).name != args.data or Path(args.data).suffix:
        parser.error(f"there is no {args.data}: name the npz, zip or folder, or a named set such as cifar10")
    return args


def steps(args: argparse.Namespace) -> dict[str, list[str]]:
    """Name and command of everything that is measured once."""
    pairs = ["--pairs", "1" if args.toy else "7", "--device", args.device]
    size = "--ipc 2 --width 4 --n-data 64 --batch-real 4" if args.toy else "--width 128 --n-data 2000"
    iteration = ["-m", "benchmarks.condense_step", *size.split(), *pairs]
    shape = "--ipc 2 --width 4 --epochs 1" if args.toy else "--shape cifar10 --width 128"
    most = "1" if args.toy else "9"
    width = (
        ["--ipc", "2", "--width", "4", "--steps", "2", "--updates", "2"] if args.toy else ["--width", "128"]
    )
    return {
        # The folder's own conftest.py alone: those above it want the servers' packages.
        "tests": [
            *[
                "-m",
                "pytest",
                "tests/core/condensation/test_gpu.py",
                "tests/core/networks/test_kernels.py",
                "tests/core/compute/test_cuda_graph.py",
            ],
            *["--confcutdir=tests/core", "-rs", "-W", "default"],
        ],
        "largest-subset-tf32": [*iteration, "--selected", most, "--precision", "tf32"],
        "smallest-subset-tf32": [*iteration, "--selected", "1", "--precision", "tf32"],
        "largest-subset-bf16": [*iteration, "--selected", most, "--precision", "bf16"],
        "feature-matching-tf32": [
            *["-m", "benchmarks.feature_step", *width, "--device", args.device, "--precision", "tf32"],
        ],
        "evaluation": ["-m", "benchmarks.evaluate", *shape.split(), *pairs, "--precision", "tf32"],
    }


def paper(args: argparse.Namespace, minutes: float) -> str:
    """What paper_run.py prints after so many more minutes."""
    schedule = TOY_SCHEDULE if args.toy else {"condense": {}, "evaluate": {}}
    settings = [
        part
        for name, values in schedule.items()
        for part in (f"--{name}", json.dumps({**values, "precision": "tf32"}))
    ]
    command = ["-m", "benchmarks.paper_run", "--data", args.data, "--out", str(args.out / "paper"), *settings]
    command += ["--device", args.device, "--minutes", str(max(0.0, minutes))]
    return output("paper_run", command)


def output(name: str, command: list[str]) -> str:
    """What a command of Python prints; the end when it fails, unless it is the tests."""
    ran = subprocess.run(
        [sys.executable, *command],
        check=False,
        cwd=ROOT,
        # The packages need not be installed.
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    if ran.returncode and name != "tests":
        raise SystemExit(
            f"{ran.stdout}\n{name} failed: {' '.join(command)}\nThe same call again goes on with it."
        )
    return ran.stdout


def table(found: dict[str, str]) -> str:
    """Markdown: an iteration's milliseconds and ratios, its operators, and the evaluation's ratio."""
    measured = {name: json.loads(text) for name, text in found.items() if name != "tests"}
    tests = found.get("tests", "not run").strip()
    rows = [tests if "failed" in tests else f"Tests: {(tests.splitlines() or ['no output'])[-1]}", ""]
    rows += ["| | ms | matching | training | iteration | unrecorded | machine |", "|-|-|-|-|-|-|-|"]
    iterations = {name: one for name, one in measured.items() if "operators" in one}
    for name, one in iterations.items():
        taken = one["median_seconds"]
        ratios = [
            "{median:.2f} ({min:.2f}–{max:.2f})".format(**one[f"{part}_speedup"])
            for part in ("matching", "network", "iteration")
        ]
        whole = f"{1000 * (taken['engine'] + taken['network']):.1f}"
        rows.append(f"| {' | '.join([name, whole, *ratios, str(one['unrecorded']), one['machine']])} |")
    if "feature-matching-tf32" in measured:
        one = measured["feature-matching-tf32"]
        step, update = (f"{one[part]['median']:.2f} ms" for part in ("training_step", "update"))
        rows.append(f"\nFeature matching: {step} a training step, {update} an update ({one['machine']})")
    if "evaluation" in measured:
        one = measured["evaluation"]
        rows.append(f"\nEvaluation at once against one by one: {one['ratio']} ({one['machine']})")
    rows += [
        f"\n{name}, milliseconds by operator: {json.dumps(one['operators'])}"
        for name, one in iterations.items()
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
