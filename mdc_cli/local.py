"""Commands that work on this machine without a service: condense, evaluate, preview, import."""

from __future__ import annotations

import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from mdc_cli import files
from mdc_cli.output import accuracy, duration, people, print_json, progress_bar, table
from mdc_cli.pools import FolderPools
from mdc_core import rankmajor
from mdc_core.config import CondenseConfig, EvaluateConfig
from mdc_core.errors import ConfigError, MdcError
from mdc_core.estimate import Estimate, estimate
from mdc_core.malloc import keep_freed_memory
from mdc_core.memory import total_bytes
from mdc_core.presets import NAMED, PRESETS, condense_config, evaluate_config, merge, preset_for

if TYPE_CHECKING:  # torch is loaded by the commands that need it, so that --help is quick
    from rich.progress import Progress

    from mdc_core.condense import CondenseState
    from mdc_core.data import DataSet
    from mdc_core.evaluate import Row, Trial
    from mdc_core.synthetic import SyntheticSet

Data = Annotated[
    str, typer.Argument(help=f"A named data set ({', '.join(NAMED)}), or a folder, zip or npz of your own.")
]
SetFile = Annotated[
    Path, typer.Argument(metavar="SET", help="A condensed set: the file that condense wrote.")
]
Ipc = Annotated[int | None, typer.Option(help="Images per class of the whole set, N. [default: 10]")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any other setting, such as class_wise=true; see docs/guide.md."
    ),
]
DataRoot = Annotated[Path, typer.Option(help="Folder of the named data sets.", envvar="MDC_DATA_ROOT")]
Download = Annotated[bool, typer.Option("--download", help="Download a named data set that is missing.")]
Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:1, …")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DEFAULT_ROOT = Path("mdc-data/datasets")
CHECKPOINT_SECONDS = 60


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(condense)
    app.command()(evaluate)
    app.command()(preview)
    app.command("import")(import_released)


def condense(
    dataset: Data,
    ipc: Ipc = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write. [default: DATASET-ipcN.safetensors]")
    ] = None,
    preset: Annotated[str | None, typer.Option(help=f"Settings to start from: {', '.join(PRESETS)}.")] = None,
    outer_loops: Annotated[int | None, typer.Option(help="Outer loops T; fewer is faster and worse.")] = None,
    subset_loss: Annotated[
        str | None, typer.Option(help="mls (the method), none (Baseline C) or all.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random follows from it.")] = None,
    settings: Settings = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint beside the file.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell the memory and the time that it would take.")
    ] = False,
    device: Device = "auto",
    data_root: DataRoot = DEFAULT_ROOT,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Condense a data set into a few synthetic images per class, good at every size.

    Ctrl-C saves a checkpoint; the same command with --resume goes on from it.
    """
    from mdc_core.condense import result
    from mdc_core.data import load

    data = load(dataset, data_root, download=download)
    given = {"ipc": ipc, "outer_loops": outer_loops, "subset_loss": subset_loss, "seed": seed}
    overrides = {name: value for name, value in given.items() if value is not None}
    config = configured(
        condense_config, preset or preset_for(data.facts()), merge(overrides, parsed(settings))
    )
    config.check_data(data.facts())
    expected = _expected(config, data, _chosen(device))
    if dry_run:
        print_json(expected.to_dict()) if as_json else people.print(_in_words(expected, config.outer_loops))
        return
    path = files.check_target(out or Path(f"{data.name}-ipc{config.ipc}{files.SET_SUFFIX}"))
    pools = FolderPools(data_root.parent / "pools")
    state = _iterate(config, data, _chosen(device), path, resume, expected, pools)
    synthetic = result(state, data.train)
    packed = rankmajor.pack(synthetic.quantised().cpu().numpy(), synthetic.info(data.train))
    files.write(path, packed)
    files.write_run(path, {"data": _portable(dataset), "condense": config.model_dump(mode="json")})
    files.checkpoint_path(path).unlink(missing_ok=True)
    summary = {"set": str(path), "bytes": len(packed), "sha256": rankmajor.sha256(packed), "ipc": config.ipc}
    if as_json:
        print_json(summary)
    else:
        people.print(f"Wrote {path} ({len(packed)} bytes). Next: mdc evaluate {path}", soft_wrap=True)


def evaluate(
    path: SetFile,
    data: Annotated[
        str | None, typer.Option(help="The data set it was made from. [default: as recorded]")
    ] = None,
    k: Annotated[
        list[int] | None, typer.Option(help="Size to evaluate; may be repeated. [default: all]")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each training.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Networks per size. [default: 3]")] = None,
    settings: Settings = None,
    plot: Annotated[Path | None, typer.Option(help="PNG to draw. [default: SET.png]")] = None,
    device: Device = "auto",
    data_root: DataRoot = DEFAULT_ROOT,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Train networks on the first k images per class, for every k, beside k random real images; table and plot."""
    from mdc_cli.plot import accuracy_plot
    from mdc_core.data import load
    from mdc_core.evaluate import summarise, trials_planned

    run = files.read_run(path)
    source = data or run.get("data")
    if source is None:
        raise MdcError(f"{files.run_path(path)} does not say what {path} was made from: name it with --data")
    loaded = load(source, data_root, download=download)
    synthetic = _open_set(path, loaded)
    given = {"epochs": epochs, "repeats": repeats, "sizes": k or None}
    overrides = {name: value for name, value in given.items() if value is not None}
    if "condense" in run:  # the network that was matched is the one to judge by
        overrides["network"] = run["condense"]["network"]
    info = synthetic.info(loaded.train)
    recipe_for = partial(evaluate_config, ipc=info.ipc, factor=info.factor)
    recipe = configured(recipe_for, preset_for(loaded.facts()), merge(overrides, parsed(settings)))
    recipe.sizes_of(len(synthetic.tiles))
    done: list[Trial] = []
    try:
        _train_all(synthetic, loaded, recipe, _chosen(device), done)
    except KeyboardInterrupt:
        people.print(
            f"Stopped after {len(done)} of {trials_planned(recipe, len(synthetic.tiles))} trainings."
        )
        _print_rows(summarise(done), recipe)
        raise
    rows = summarise(done)
    picture = plot or files.beside(path, ".png")
    accuracy_plot(rows, f"{path.stem}: {recipe.network.label()}, {recipe.epochs} epochs", picture)
    if as_json:
        print_json({"rows": [dataclasses.asdict(row) for row in rows], "plot": str(picture)})
    else:
        _print_rows(rows, recipe)
        people.print(f"Drew {picture}")


def preview(path: SetFile, out: Annotated[Path, typer.Argument(help="PNG to write.")]) -> None:
    """Draw a condensed set: a row per class, a column per rank."""
    from mdc_core.preview import preview_png

    info, tiles = rankmajor.read(files.read(path))
    files.write(out, preview_png(tiles, info))
    people.print(f"Drew {out}: {len(info.classes)} classes, {len(tiles)} ranks")


def import_released(
    released: Annotated[Path, typer.Argument(help="A data_*.pt file of the released code.")],
    out: Annotated[Path, typer.Argument(help="Set to write.")],
    data: Annotated[str, typer.Option(help="The data set that it was condensed from.")],
    factor: Annotated[int, typer.Option(help="Its multi-formation factor f.")] = 2,
    data_root: DataRoot = DEFAULT_ROOT,
    download: Download = False,
) -> None:
    """Convert a set that the released code wrote, so that it can be evaluated, previewed and delivered."""
    from mdc_core.data import load
    from mdc_core.released import import_released as convert
    from mdc_core.synthetic import SyntheticSet

    loaded = load(data, data_root, download=download)
    files.check_target(out)
    tiles, info = convert(released, factor, loaded.train.classes)
    if (info["image_size"], info["channels"]) != (loaded.train.image_size, loaded.train.channels):
        raise MdcError(
            f"{released} holds images of {info['image_size']} pixels and {info['channels']} channels, {data} has "
            f"{loaded.train.image_size} and {loaded.train.channels}: name the data set it was made from"
        )
    synthetic = SyntheticSet(tiles, loaded.train.image_size)
    files.write(out, rankmajor.pack(synthetic.quantised().numpy(), synthetic.info(loaded.train)))
    files.write_run(out, {"data": _portable(data)})
    people.print(f"Wrote {out}. Next: mdc evaluate {out}")


def parsed(settings: list[str] | None) -> dict[str, Any]:
    """`NAME=VALUE` pairs as a mapping; values are JSON where they can be, else text; dots reach into the network."""
    values: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(
                f"--set {setting!r} has no '=': write it as NAME=VALUE, such as class_wise=true"
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        outer, dot, inner = name.partition(".")
        values = merge(values, {outer: {inner: value}} if dot else {name: value})
    return values


def configured(make: Any, preset: str, overrides: dict[str, Any]) -> Any:
    """A configuration; pydantic's findings become one `ConfigError` that names every field."""
    try:
        return make(preset, overrides)
    except ValidationError as error:
        found = (
            "{}: {}".format(".".join(map(str, item["loc"])) or "settings", item["msg"])
            for item in error.errors()
        )
        raise ConfigError("; ".join(found)) from error


def _expected(config: CondenseConfig, data: DataSet, device: str) -> Estimate:
    """What the condensation will take on this machine."""
    from mdc_core.calibrate import calibrate

    speed = calibrate(config, data.facts(), device)
    return estimate(config, data.facts(), speed=speed, memory_limit=total_bytes())


def _in_words(expected: Estimate, loops: int) -> str:
    """Time and memory for `loops` outer loops, and for the networks of a pool, of which none is there yet."""
    per_loop = expected.seconds_per_outer_loop or 0.0
    pool = f"{duration(expected.seconds_pool)} for its networks, " if expected.seconds_pool else ""
    return (
        f"About {duration(per_loop * loops)} for {loops} outer loops ({duration(per_loop)} each), {pool}"
        f"{expected.memory_bytes / 1e9:.1f} GB of memory."
    )


def _iterate(
    config: CondenseConfig,
    data: DataSet,
    device: str,
    path: Path,
    resume: bool,
    expected: Estimate,
    pools: FolderPools,
) -> CondenseState:
    """Train the networks of a pool, then run the loops, under a progress bar.

    A checkpoint every minute, at the end, and when interrupted.
    """
    from mdc_core import checkpoint
    from mdc_core.condense import condense as steps

    saved = files.checkpoint_path(path)
    state = None
    if resume:
        state = checkpoint.resume(files.read(saved), config)
    elif saved.exists():
        raise MdcError(
            f"{saved} is from an unfinished run: add --resume to go on, or delete it to start again"
        )
    if state is not None and state.outer >= config.outer_loops:
        return state
    people.print(_in_words(expected, config.outer_loops - (state.outer if state else 0)))
    try:
        with progress_bar() as bar:
            _train_networks(config, data, device, pools, bar)
            task = bar.add_task("condensing", total=config.outer_loops, detail="")
            if state is not None:
                bar.update(task, completed=state.outer)
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


def _open_set(path: Path, data: DataSet) -> SyntheticSet:
    """The set as devices see it; `MdcError` when it does not fit the data."""
    import torch

    from mdc_core.synthetic import SyntheticSet

    info, tiles = rankmajor.read(files.read(path))
    ours = (info.classes, info.image_size, info.channels)
    theirs = (data.train.classes, data.train.image_size, data.train.channels)
    if ours != theirs:
        raise MdcError(
            f"{path} has {len(info.classes)} classes of {info.image_size}-pixel images, {data.name!r} has "
            f"{len(data.train.classes)} of {data.train.image_size}: evaluate it on the data it was made from (--data)"
        )
    return SyntheticSet(torch.from_numpy(tiles.copy()).float() / 255, info.image_size)


def _train_all(
    synthetic: SyntheticSet, data: DataSet, recipe: EvaluateConfig, device: str, done: list[Trial]
) -> None:
    """Every training under a progress bar, each added to `done`, which so outlives an interruption."""
    from mdc_core.evaluate import evaluate as trainings
    from mdc_core.evaluate import trials_planned

    with progress_bar() as bar:
        task = bar.add_task("evaluating", total=trials_planned(recipe, len(synthetic.tiles)), detail="")
        for trial in trainings(synthetic, data, recipe, device):
            done.append(trial)
            detail = f"k={trial.k} {trial.source}: {100 * trial.accuracy:.1f} %"
            bar.update(task, advance=1, detail=detail)


def _print_rows(rows: list[Row], recipe: EvaluateConfig) -> None:
    random = {row.k: row for row in rows if row.source == "random"}
    table(
        f"{recipe.network.label()}, {recipe.epochs} epochs, {recipe.repeats} networks per size, mean ± std",
        ["k", "condensed", "random real", "condensed, best of 4 tests"],
        [
            [
                str(row.k),
                accuracy(row.mean, row.std),
                accuracy(random[row.k].mean, random[row.k].std) if row.k in random else "-",
                f"{100 * row.best:.2f} %",
            ]
            for row in rows
            if row.source == "condensed"
        ],
    )


def _chosen(device: str) -> str:
    """The device by name, and this process made ready to compute; `ConfigError` when torch does not know it."""
    import torch

    keep_freed_memory()

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _portable(dataset: str) -> str:
    """A named data set as it is, a path made absolute."""
    return dataset if dataset in NAMED else str(Path(dataset).resolve())
