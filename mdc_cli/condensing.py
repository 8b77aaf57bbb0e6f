"""A condensation on this machine, step by step: planned, resumed, told, iterated, written."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdc_cli import files
from mdc_cli.given import configured, portable
from mdc_cli.outlook import HOUR, Outlook, as_options, ask, warning
from mdc_cli.output import people, print_json, progress_bar
from mdc_cli.pools import FolderPools
from mdc_core import rankmajor
from mdc_core.choices import Choice, choose
from mdc_core.config import CondenseConfig, DataFacts
from mdc_core.errors import MdcError
from mdc_core.estimate import estimate
from mdc_core.presets import NAMED
from mdc_core.shorter import Run, Shorter

if TYPE_CHECKING:  # torch is loaded by the commands that need it, so that --help is quick
    from rich.progress import Progress

    from mdc_core.condense import CondenseState
    from mdc_core.data import DataSet

CHECKPOINT_SECONDS = 60


@dataclass(frozen=True)
class Planned:
    """A condensation whose settings suit its data, of which no pixel has been read."""

    dataset: str
    facts: DataFacts
    choice: Choice

    @property
    def preset(self) -> str:
        """What the settings started from."""
        return self.choice.preset

    @property
    def config(self) -> CondenseConfig:
        """The whole condensation."""
        return self.choice.condense

    @property
    def is_named(self) -> bool:
        """Whether the data are one of the named sets."""
        return self.dataset in NAMED

    def default_path(self) -> Path:
        """File to write when none is named."""
        return Path(f"{self.facts.name}-ipc{self.config.ipc}{files.SET_SUFFIX}")

    def load(self, root: Path, download: bool) -> DataSet:
        """The data, at the side that was planned with."""
        from mdc_core.data import load

        return load(self.dataset, root, image_size=self.facts.image_size, download=download)


def plan(dataset: str, image_size: int | None, preset: str | None, overrides: dict[str, Any]) -> Planned:
    """Settings and data against each other, by names and headers alone."""
    from mdc_core.data import survey

    facts = survey(dataset, image_size=image_size, preset=preset)
    choice = configured(lambda: choose(facts, preset, overrides, is_own=dataset not in NAMED))
    choice.condense.check_data(facts)
    return Planned(dataset, facts, choice)


def saved_state(path: Path, planned: Planned, resume: bool) -> CondenseState | None:
    """The state to go on from; `MdcError` when there is one and it is not asked for, or when it is another run's."""
    from mdc_core import checkpoint

    saved = files.checkpoint_path(path)
    if not resume:
        if saved.exists():
            raise MdcError(
                f"{saved} is from an unfinished run: add --resume to go on, or delete it to start again"
            )
        return None
    state = checkpoint.resume(files.read(saved), planned.config)
    side, ours = state.tiles.shape[-1], planned.config.tile_side(planned.facts.image_size)
    if side != ours:
        raise MdcError(
            f"{saved} has tiles of {side} pixels, but images of {planned.facts.image_size} are made of tiles of "
            f"{ours}: give the --image-size that it was begun with (about {side * planned.config.factor})"
        )
    return state


def tell(planned: Planned, device: str, state: CondenseState | None, go_on: bool, as_json: bool) -> Outlook:
    """Measure this machine for a moment, tell what the run will take, and ask where that is long."""
    import torch

    from mdc_core.at_once import device_bytes
    from mdc_core.calibrate import calibrate

    config, facts = planned.config, planned.facts
    left = config.outer_loops - (state.outer if state else 0)
    remaining = config.model_copy(update={"outer_loops": left})
    speed = calibrate(config, facts, device)
    there = torch.device(device)
    limit, gpu = device_bytes(there), there.type == "cuda"
    expected = estimate(remaining, facts, speed=speed, memory_limit=limit, gpu=gpu)
    outlook = Outlook(
        facts=facts,
        preset=planned.preset,
        condense=config,
        loops=left,
        seconds=expected.seconds_total,
        seconds_pool=expected.seconds_pool,
        seconds_per_loop=expected.seconds_per_outer_loop,
        seconds_evaluation=None,
        memory_bytes=expected.memory_bytes,
        chosen=planned.choice.lowered,
    )
    if as_json:
        print_json(outlook.document())
    else:
        people.print(outlook.words(), soft_wrap=True)
    if outlook.is_long:
        less = Run(planned.preset, config, facts, None, speed).shorter(HOUR)
        ask(warning(outlook, _options(less), less.seconds), go_on)
    return outlook


def _options(less: Shorter) -> str:
    """The options of `condense` that make the run shorter."""
    changes = dict(less.condense)
    loops = [f"--outer-loops {changes.pop('outer_loops')}"] if "outer_loops" in changes else []
    side = [] if less.image_size is None else [f"--image-size {less.image_size}", f"--preset {less.preset}"]
    return " ".join([*loops, *side, *as_options(changes)])


def iterate(
    config: CondenseConfig,
    data: DataSet,
    device: str,
    path: Path,
    state: CondenseState | None,
    pools: FolderPools,
) -> CondenseState:
    """Train the networks of a pool, then run the loops, under a progress bar.

    A checkpoint every minute, at the end, and when interrupted.
    """
    from mdc_core import checkpoint
    from mdc_core.condense import condense as steps

    saved = files.checkpoint_path(path)
    if state is not None and state.outer >= config.outer_loops:
        return state
    try:
        with progress_bar() as bar:
            _train_networks(config, data, device, pools, bar)
            done = 0 if state is None else state.outer
            task = bar.add_task("condensing", total=config.outer_loops, completed=done, detail="")
            kept = time.monotonic()
            for step in steps(config, data.train, device, resume=state, pools=pools):
                state = step.state
                if step.outer == step.total or time.monotonic() - kept > CHECKPOINT_SECONDS:
                    files.write(saved, checkpoint.to_bytes(state, config))
                    kept = time.monotonic()
                mls = f", MLS {','.join(map(str, step.selected()))}" if config.uses_mls else ""
                bar.update(task, completed=step.outer, detail=f"loss {step.loss:.4g}{mls}")
    except KeyboardInterrupt:
        if state is None:
            people.print("Stopped before the first outer loop was done: nothing to save.")
        else:
            files.write(saved, checkpoint.to_bytes(state, config))
            people.print(
                f"Stopped after outer loop {state.outer} of {config.outer_loops}; saved {saved}. "
                "Run the same command with --resume to go on."
            )
        raise
    assert state is not None
    return state


def _train_networks(
    config: CondenseConfig, data: DataSet, device: str, pools: FolderPools, bar: Progress
) -> None:
    """Those of a pool, where the run takes one, as far as they are not there yet."""
    from mdc_core.condense import prepare

    if not config.pool:
        return
    task = bar.add_task("training networks", total=config.pool, detail="")
    for member in prepare(config, data.train, device, pools=pools):
        bar.update(task, completed=member.number)


def write(path: Path, state: CondenseState, data: DataSet, planned: Planned) -> dict[str, Any]:
    """Write the set and what it was made from, and remove the checkpoint; what was written."""
    from mdc_core.condense import result

    synthetic = result(state, data.train)
    packed = rankmajor.pack(synthetic.quantised().cpu().numpy(), synthetic.info(data.train))
    files.write(path, packed)
    run = {
        "data": portable(planned.dataset),
        "image_size": planned.facts.image_size,
        "preset": planned.preset,
        "condense": planned.config.model_dump(mode="json"),
    }
    files.write_run(path, run)
    files.checkpoint_path(path).unlink(missing_ok=True)
    return {
        "set": str(path),
        "bytes": len(packed),
        "sha256": rankmajor.sha256(packed),
        "ipc": planned.config.ipc,
    }
