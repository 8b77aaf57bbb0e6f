"""Condense on this machine, step by step: plan, resume, announce, iterate, write."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdc_cli import files
from mdc_cli.options import portable_source, validated
from mdc_cli.output import print_json, progress_bar, say
from mdc_cli.pools import FolderPools
from mdc_cli.run_summary import HOUR, RunSummary, as_options, ask, warning
from mdc_core.config.defaults import SCHEDULE, Choice, choose, sentences
from mdc_core.config.estimate import estimate
from mdc_core.config.minutes import Machine, Timed
from mdc_core.config.presets import NAMED
from mdc_core.config.settings import CondenseConfig, DataFacts
from mdc_core.config.shorten import Run, Shorter
from mdc_core.delivery import rankmajor
from mdc_core.errors import MdcError

if TYPE_CHECKING:  # torch is loaded by the commands that need it, so that --help is quick
    from rich.progress import Progress

    from mdc_core.condensation.condense import CondenseState
    from mdc_core.data.real_set import DataSet

CHECKPOINT_SECONDS = 60


@dataclass(frozen=True)
class Planned:
    """A condensation whose settings have been checked against its data, before any pixel is read."""

    dataset: str
    facts: DataFacts
    choice: Choice
    timed: Timed | None = None
    """How its time is spent, if it was planned by time; `choice` then holds the schedule."""

    @property
    def preset(self) -> str:
        """The preset that the settings started from."""
        return self.choice.preset

    @property
    def config(self) -> CondenseConfig:
        """The configuration."""
        return self.choice.condense

    @property
    def is_named(self) -> bool:
        """Whether the data set is a named one."""
        return self.dataset in NAMED

    def default_path(self) -> Path:
        """The file to write by default."""
        return Path(f"{self.facts.name}-ipc{self.config.ipc}{files.SET_SUFFIX}")

    def load(self, root: Path, download: bool) -> DataSet:
        """Load the data, with the planned image size."""
        say(f"Reading {self.dataset}")
        from mdc_core.data.load import load

        return load(self.dataset, root, image_size=self.facts.image_size, download=download)


def plan(
    dataset: str,
    image_size: int | None,
    preset: str | None,
    overrides: dict[str, Any],
    minutes: float | None = None,
) -> Planned:
    """Check settings and data against each other; reads only file names and headers."""
    from mdc_core.data.load import survey

    facts = survey(dataset, image_size=image_size, preset=preset)
    choice = validated(lambda: choose(facts, preset, overrides, is_own=dataset not in NAMED, minutes=minutes))
    choice.condense.check_data(facts)
    return Planned(dataset, facts, choice)


def check_free(path: Path) -> None:
    """Raise `MdcError` if a set or a checkpoint exists already."""
    if path.exists():
        raise MdcError(
            f"{path} exists: choose another file with --out, add --resume with more --outer-loops to condense it "
            "further, or add --force to start over and overwrite it"
        )
    saved = files.checkpoint_path(path)
    if saved.exists():
        raise MdcError(
            f"{saved} is from an unfinished run: add --resume to resume it, or --force to start over"
        )


def resumed(path: Path, planned: Planned, explicit: Collection[str]) -> tuple[Planned, CondenseState]:
    """The run as it was started, and the state to resume from. `MdcError` if there is none, or it is another run's.

    Schedule settings that the user gave (`explicit`) override the saved ones, as far as a run can change: more outer
    loops.
    """
    from mdc_core.condensation import checkpoint

    saved = files.checkpoint_path(path)
    data = files.read(saved)
    planned = as_started(planned, checkpoint.from_bytes(data)[1], explicit)
    state = checkpoint.resume(data, planned.config)
    side, ours = state.tiles.shape[-1], planned.config.tile_side(planned.facts.image_size)
    if side != ours:
        raise MdcError(
            f"{saved} has tiles of {side} pixels, but images of {planned.facts.image_size} pixels have tiles of "
            f"{ours}: give the --image-size of the first run (about {side * planned.config.factor})"
        )
    return planned, state


def as_started(planned: Planned, made_with: CondenseConfig, explicit: Collection[str]) -> Planned:
    """The run with the schedule that it was started with, except for `explicit` settings."""
    choice = planned.choice
    is_feature = choice.condense.method == made_with.method == "feature"
    # Explicit schedule settings turn off planning by time, which may have decided the rest of the schedule.
    was_timed = not planned.is_named and is_feature and explicit
    if choice.minutes is None and not was_timed:
        return planned
    network = choice.condense.network
    if made_with.network.width in choice.widths:
        network = network.model_copy(update={"width": made_with.network.width})
    changes = {name: getattr(made_with, name) for name in SCHEDULE if name not in explicit} | {
        "network": network
    }
    if choice.may_shrink:
        changes["at_tile_side"] = made_with.at_tile_side
    condense = choice.condense.model_copy(update=changes)
    return replace(planned, choice=replace(choice, condense=condense, minutes=None))


def machine(config: CondenseConfig, facts: DataFacts, device: str) -> Machine:
    """This machine's speed and memory, after a short benchmark with the network of `config` on such data."""
    import torch

    from mdc_core.compute.batching import device_bytes
    from mdc_core.training.calibrate import calibrate

    say(f"Measuring how fast {device} trains {config.network.label()}")
    where = torch.device(device)
    return Machine(calibrate(config, facts, device), device_bytes(where), where.type == "cuda")


def tell(
    planned: Planned, here: Machine, state: CondenseState | None, go_on: bool, as_json: bool
) -> RunSummary:
    """Print what the run will take on this machine; ask for confirmation if it is long and no time was requested."""
    config, facts, timed = planned.config, planned.facts, planned.timed
    left = config.outer_loops - (state.outer if state else 0)
    remaining = config.model_copy(update={"outer_loops": left})
    expected = estimate(remaining, facts, speed=here.speed, memory_limit=here.memory_bytes, gpu=here.gpu)
    if timed is not None:
        expected = replace(
            expected,
            seconds_total=timed.seconds,
            seconds_pool=timed.seconds_pool,
            seconds_per_outer_loop=timed.seconds_matching / config.outer_loops,
        )
    summary = RunSummary(
        facts=facts,
        preset=planned.preset,
        condense=config,
        loops=left,
        seconds=expected.seconds_total,
        seconds_pool=expected.seconds_pool,
        seconds_per_loop=expected.seconds_per_outer_loop,
        seconds_evaluation=None,
        memory_bytes=expected.memory_bytes,
        chosen=sentences(planned.choice.lowered, None if timed is None else timed.chosen),
        warning=None if timed is None else timed.warning,
    )
    if as_json:
        print_json(summary.to_dict())
    else:
        say(summary.text())
        if summary.warning is not None:
            say(f"Warning: {summary.warning}.", "yellow")
    if summary.is_long and timed is None:
        less = Run(planned.preset, config, facts, None, here.speed).shorter(HOUR)
        ask(warning(summary, _options(less), less.seconds), go_on)
    return summary


def _options(less: Shorter) -> str:
    """The options of `mdc condense` that shorten the run."""
    changes = dict(less.condense)
    loops = [f"--outer-loops {changes.pop('outer_loops')}"] if "outer_loops" in changes else []
    side = [] if less.image_size is None else [f"--image-size {less.image_size}", f"--preset {less.preset}"]
    return " ".join([*loops, *side, *as_options(changes)])


def begin(path: Path, planned: Planned, data: DataSet) -> CondenseState:
    """The state before the first loop, saved at once: so the schedule survives if training the pool is interrupted."""
    from mdc_core.condensation import checkpoint
    from mdc_core.condensation.condense import start_state

    state = start_state(planned.config, data.train)
    files.write(files.checkpoint_path(path), checkpoint.to_bytes(state, planned.config))
    return state


def iterate(
    config: CondenseConfig,
    data: DataSet,
    device: str,
    path: Path,
    state: CondenseState | None,
    pools: FolderPools,
) -> CondenseState:
    """Train the networks of a pool, then run the outer loops, with a progress bar.

    Checkpoints are written every minute, at the end, and on interruption.
    """
    from mdc_core.condensation import checkpoint
    from mdc_core.condensation.condense import condense as steps

    saved = files.checkpoint_path(path)
    if state is not None and state.outer >= config.outer_loops:
        return state
    try:
        with progress_bar() as bar:
            _train_networks(config, data, device, pools, bar)
            done = 0 if state is None else state.outer
            task = bar.add_task("condensing", total=config.outer_loops, completed=done, detail="")
            saved_at = time.monotonic()
            for step in steps(config, data.train, device, resume=state, pools=pools):
                state = step.state
                if step.outer == step.total or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    files.write(saved, checkpoint.to_bytes(state, config))
                    saved_at = time.monotonic()
                mls = f", MLS {','.join(map(str, step.selected()))}" if config.uses_mls else ""
                bar.update(task, completed=step.outer, detail=f"loss {step.loss:.4g}{mls}")
    except KeyboardInterrupt:
        if state is None:
            say("Stopped before the end of the first outer loop: nothing to save.")
        else:
            files.write(saved, checkpoint.to_bytes(state, config))
            say(
                f"Stopped after outer loop {state.outer} of {config.outer_loops}; saved {saved}. "
                "Run the same command with --resume to continue."
            )
        raise
    assert state is not None
    return state


def _train_networks(
    config: CondenseConfig, data: DataSet, device: str, pools: FolderPools, bar: Progress
) -> None:
    """Train the missing networks of the pool, if the run uses one."""
    from mdc_core.condensation.condense import prepare

    if not config.pool:
        return
    task = bar.add_task("training networks", total=config.pool, detail="")
    for member in prepare(config, data.train, device, pools=pools):
        bar.update(task, completed=member.number)


def write(path: Path, state: CondenseState, data: DataSet, planned: Planned) -> dict[str, Any]:
    """Write the set and its record; returns a summary. The checkpoint stays, so that more loops can follow."""
    from mdc_core.condensation.condense import result

    synthetic = result(state, data.train)
    packed = rankmajor.pack(synthetic.quantised().cpu().numpy(), synthetic.info(data.train))
    files.write(path, packed)
    run = {
        "data": portable_source(planned.dataset),
        "data_sha256": state.data,
        "image_size": planned.facts.image_size,
        "preset": planned.preset,
        "condense": planned.config.model_dump(mode="json"),
    }
    files.write_run(path, run)
    return {
        "set": str(path),
        "bytes": len(packed),
        "sha256": rankmajor.sha256(packed),
        "ipc": planned.config.ipc,
    }
