"""The published experiment: CIFAR-10, ipc 10, MDC and Baseline C, accuracy(k) beside the published table.

    python -m benchmarks.paper_run --device cuda --minutes 9      # again and again, until it prints the table

Condenses with the published schedule and evaluates every k with the published recipe. Each call works for about
`--minutes` and keeps what it has under --out; the next call goes on from there. The last one prints Markdown, with
wall time and the operations per second that it amounts to.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mdc_core.condensation import checkpoint
from mdc_core.condensation.condense import CondenseState, condense, result
from mdc_core.config.estimate import estimate
from mdc_core.config.presets import condense_config, evaluate_config, preset_for
from mdc_core.config.settings import CondenseConfig, EvaluateConfig
from mdc_core.data.load import load
from mdc_core.data.real_set import DataSet
from mdc_core.system.malloc import keep_freed_memory
from mdc_core.training.evaluate import Trial, evaluate

METHODS = {"MDC": "mls", "Baseline C": "none"}
PUBLISHED = {  # arXiv 2403.06075: accuracy in per cent for k = 1..10, or their average alone
    "MDC": (49.66, 54.58, 53.92, 54.55, 55.18, 58.80, 61.51, 63.36, 65.41, 66.72),
    "Baseline C": (53.15,),
}


def main() -> None:
    """Work until the time is up; print the table when there is nothing left to do."""
    args = parse()
    keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    data = load(args.data, args.data_root, download=args.download)
    deadline: float = time.monotonic() + 60 * args.minutes

    def in_time() -> bool:
        return time.monotonic() < deadline

    runs = {}
    for method, subset_loss in METHODS.items():
        run = Run.of(args, data, method, subset_loss)
        if not run.go_on(data, args.device, in_time):
            print(json.dumps({"unfinished": method, **run.progress()}))
            return
        runs[method] = run
    print(table(runs, data))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cifar10", help="named data set, folder, zip or npz")
    parser.add_argument("--data-root", type=Path, default=Path("mdc-data/datasets"))
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call")
    parser.add_argument("--condense", type=json.loads, default={}, help="JSON over the published schedule")
    parser.add_argument("--evaluate", type=json.loads, default={}, help="JSON over the published recipe")
    return parser.parse_args()


@dataclasses.dataclass
class Run:
    """One method: its settings, and what has been done in this and earlier calls."""

    config: CondenseConfig
    recipe: EvaluateConfig
    path: Path
    """Without suffix: `.checkpoint` and `.json` go there."""
    state: CondenseState | None
    trials: list[Trial]
    seconds: dict[str, float]
    """Wall time so far of `condense` and `evaluate`."""

    @classmethod
    def of(cls, args: argparse.Namespace, data: DataSet, method: str, subset_loss: str) -> Run:
        """As earlier calls have left it."""
        preset = preset_for(data.facts())
        config = condense_config(preset, {"subset_loss": subset_loss, **args.condense})
        judged = {"network": config.network.model_dump(), "random_baseline": False, **args.evaluate}
        path = args.out / method.lower().replace(" ", "-")
        saved = path.with_suffix(".checkpoint")
        state = checkpoint.resume(saved.read_bytes(), config) if saved.exists() else None
        recipe = evaluate_config(preset, judged, ipc=config.ipc, factor=config.factor)
        trials, seconds = [], {"condense": 0.0, "evaluate": 0.0}
        if path.with_suffix(".json").exists():
            kept = json.loads(path.with_suffix(".json").read_text())
            trials = [Trial(**{"epochs": recipe.epochs, **trial}) for trial in kept["trials"]]
            seconds = kept["seconds"]
        return cls(config, recipe, path, state, trials, seconds)

    def go_on(self, data: DataSet, device: str, in_time: Callable[[], bool]) -> bool:
        """Condense, then evaluate, while there is time; whether all of it is done. At least one step is made."""
        begun = time.perf_counter()
        if self.state is None or self.state.outer < self.config.outer_loops:
            for step in condense(self.config, data.train, device, resume=self.state):
                self.state = step.state
                if not in_time():
                    break
            self._keep("condense", begun)
        assert self.state is not None
        if self.state.outer < self.config.outer_loops:
            return False
        begun = time.perf_counter()
        delivered = result(self.state, data.train).delivered()
        for trial in evaluate(delivered, data, self.recipe, device, done=tuple(self.trials)):
            self.trials.append(trial)
            if not in_time():
                break
        self._keep("evaluate", begun)
        return len(self.trials) == self._planned()

    def progress(self) -> dict[str, object]:
        """How far it is."""
        outer = self.state.outer if self.state else 0
        return {
            "outer_loops": [outer, self.config.outer_loops],
            "trainings": [len(self.trials), self._planned()],
            "seconds": self.seconds,
            "gpu_bytes": self._gpu_bytes(),
        }

    def _planned(self) -> int:
        """Trainings of the whole evaluation."""
        return self.recipe.trainings(self.config.ipc, self.config.factor)

    def _gpu_bytes(self) -> int | None:
        """Most that was reserved in this call, for the comparison with the estimate."""
        assert self.state is not None
        device = self.state.tiles.device
        return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None

    def _keep(self, phase: str, begun: float) -> None:
        self.seconds[phase] += time.perf_counter() - begun
        assert self.state is not None
        self.path.with_suffix(".checkpoint").write_bytes(checkpoint.to_bytes(self.state, self.config))
        kept = {"seconds": self.seconds, "trials": [dataclasses.asdict(trial) for trial in self.trials]}
        self.path.with_suffix(".json").write_text(json.dumps(kept))


def table(runs: dict[str, Run], data: DataSet) -> str:
    """Markdown: a row per k, mean ± sample standard deviation in per cent; the published mean; the best of 4 tests."""
    lines = []
    for method, run in runs.items():
        lines += [f"### {method}", "| k | accuracy | best of 4 tests | published |", "|-|-|-|-|"]
        means = []
        for k in run.recipe.sizes_of(run.config.ipc):
            found = [100 * trial.accuracy for trial in run.trials if trial.k == k]
            best = statistics.fmean(100 * trial.best for trial in run.trials if trial.k == k)
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            means.append(statistics.fmean(found))
            published = PUBLISHED[method]
            told = f"{published[k - 1]:.2f}" if k <= len(published) > 1 else ""
            lines.append(f"| {k} | {means[-1]:.2f} ± {spread:.2f} | {best:.2f} | {told} |")
        lines.append(
            f"| average | {statistics.fmean(means):.2f} | | {statistics.fmean(PUBLISHED[method]):.2f} |"
        )
        operations = estimate(run.config, data.facts()).flops
        seconds = run.seconds["condense"]
        lines.append(
            f"\nCondensing took {seconds:.0f} s ({operations / seconds / 1e12:.3g} TFLOP/s), "
            f"{len(run.trials)} trainings {run.seconds['evaluate']:.0f} s.\n"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
