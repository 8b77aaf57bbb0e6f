"""Commands that need no service: condense, evaluate, preview, import."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from mdc_cli import files
from mdc_cli.condensing import begin, check_free, iterate, plan, resumed, tell, write
from mdc_cli.options import parse_settings, portable_source, select_device, validated
from mdc_cli.output import accuracy_table, print_json, progress_bar, say
from mdc_cli.pools import FolderPools
from mdc_cli.timing import clock, measured
from mdc_core.config.defaults import METHODS, SCHEDULE
from mdc_core.config.presets import NAMED, PRESETS, evaluate_config, merge, preset_for
from mdc_core.config.settings import DataFacts, EvaluateConfig, check_network
from mdc_core.delivery import rankmajor
from mdc_core.delivery.rankmajor import SetInfo
from mdc_core.delivery.verdict import advice, judged
from mdc_core.errors import MdcError

if TYPE_CHECKING:  # torch is loaded by the commands that need it, so that --help is quick
    from mdc_core.data.real_set import DataSet
    from mdc_core.data.synthetic import SyntheticSet
    from mdc_core.training.evaluate import Row, Trial

Data = Annotated[
    str, typer.Argument(help=f"A named data set ({', '.join(NAMED)}), or your own folder, zip or npz.")
]
SetFile = Annotated[
    Path, typer.Argument(metavar="SET", help="A condensed set, as written by `mdc condense`.")
]
Ipc = Annotated[int | None, typer.Option(help="Images per class of the whole set (N). [default: 10]")]
Method = Annotated[
    str | None,
    typer.Option(
        help=f"What to match: {', '.join(METHODS)}. [default: feature; mdc for published data sets and presets]"
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        help="Minutes that the run may take; they decide the schedule. [default: 10 for your own data without one]"
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Another setting, such as class_wise=true (docs/reference/settings.md).",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        help="Resize images of a folder or zip to this side, 4..1024. [default: their own, at most 64]"
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
Yes = Annotated[
    bool, typer.Option("--yes", help="Start without asking, even if the run takes more than a day.")
]
DataRoot = Annotated[Path, typer.Option(help="Folder of the named data sets.", envvar="MDC_DATA_ROOT")]
Download = Annotated[bool, typer.Option("--download", help="Download the named data set if it is missing.")]
Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:1, …")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DEFAULT_ROOT = Path("mdc-data/datasets")


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
    method: Method = None,
    minutes: Minutes = None,
    preset: Annotated[str | None, typer.Option(help=f"Settings to start from: {', '.join(PRESETS)}.")] = None,
    image_size: ImageSize = None,
    outer_loops: Annotated[
        int | None, typer.Option(help="Outer loops (T); fewer are faster, but less accurate.")
    ] = None,
    subset_loss: Annotated[str | None, typer.Option(help="mls (MDC), none (Baseline C) or all.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    settings: Settings = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the checkpoint beside the file.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only show what was read, and the memory and time that the run would take."
        ),
    ] = False,
    force: Force = False,
    yes: Yes = False,
    device: Device = "auto",
    data_root: DataRoot = DEFAULT_ROOT,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Condense a data set into a few synthetic images per class, useful at every size.

    Ctrl-C saves a checkpoint. Run the same command with --resume to continue; with more --outer-loops, this also
    continues a finished set.
    """
    begun = clock()
    options = {
        "method": method,
        "ipc": ipc,
        "outer_loops": outer_loops,
        "subset_loss": subset_loss,
        "seed": seed,
    }
    overrides = merge(
        {name: value for name, value in options.items() if value is not None}, parse_settings(settings)
    )
    planned = plan(dataset, image_size, preset, overrides, minutes)
    path = None if dry_run else files.check_target(out or planned.default_path())
    state = None
    if path is not None and resume:
        if force:
            raise MdcError("--resume continues a run and --force starts over: leave one of them out")
        planned, state = resumed(path, planned, [name for name in SCHEDULE if name in overrides])
    elif path is not None and not force:
        check_free(path)
    chosen = select_device(device)
    # A named set may be missing, which the user should hear before the benchmark; of other data, headers have been
    # read already. Planning by time needs the data for its pilot run.
    loads_first = planned.is_named or planned.choice.minutes is not None
    data = planned.load(data_root, download) if loads_first and not dry_run else None
    planned, here = measured(planned, chosen, data, begun)
    run = tell(planned, here, state, yes or dry_run, as_json and dry_run)
    if path is None:
        return
    data = data or planned.load(data_root, download)
    if force:
        files.checkpoint_path(path).unlink(missing_ok=True)
    if planned.timed is not None:
        state = begin(path, planned, data)
    state = iterate(planned.config, data, chosen, path, state, FolderPools(data_root.parent / "pools"))
    summary = write(path, state, data, planned)
    if as_json:
        print_json({**summary, **run.to_dict()})
    else:
        say(f"Wrote {path} ({summary['bytes']} bytes). Next: mdc evaluate {path}")


def evaluate(
    path: SetFile,
    data: Annotated[
        str | None, typer.Option(help="The data set that it was made from. [default: the recorded one]")
    ] = None,
    k: Annotated[
        list[int] | None, typer.Option(help="Size to evaluate; repeat for several. [default: all]")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each training.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Networks per size. [default: 3]")] = None,
    settings: Settings = None,
    plot: Annotated[Path | None, typer.Option(help="PNG file to draw. [default: SET.png]")] = None,
    changed_data: Annotated[
        bool,
        typer.Option("--changed-data", help="Test on held-out images even if the data have changed since."),
    ] = False,
    device: Device = "auto",
    data_root: DataRoot = DEFAULT_ROOT,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Train networks on the first k images per class, for every k, and compare with real images.

    Prints a table with verdicts and draws a plot.
    """
    from mdc_cli.plot import accuracy_plot
    from mdc_core.data.load import load
    from mdc_core.training.evaluate import accuracy_rows, summarise

    run = files.read_run(path)
    source = data or run.get("data")
    if source is None:
        raise MdcError(f"{files.run_path(path)} does not name the data of {path}: give them with --data")
    info, tiles = rankmajor.read(files.read(path))
    facts = _facts_at(source, info.image_size)
    _check_alike(path, info, facts)
    options = {"epochs": epochs, "repeats": repeats, "sizes": k or None}
    overrides = {name: value for name, value in options.items() if value is not None}
    if "condense" in run:  # evaluate with the network that was matched
        overrides["network"] = run["condense"]["network"]
    preset, overrides = run.get("preset", preset_for(facts)), merge(overrides, parse_settings(settings))
    recipe = validated(lambda: evaluate_config(preset, overrides, ipc=info.ipc, factor=info.factor))
    recipe.sizes_of(info.ipc)
    check_network(recipe.network, info.image_size)
    chosen = select_device(device)
    say(f"Reading {source}")
    loaded = load(source, data_root, image_size=facts.image_size, download=download)
    synthetic = _delivered(path, info, tiles, loaded)
    is_changed = run.get("data_sha256") not in (None, loaded.train.fingerprint())
    if is_changed:
        _warn_of_change(path, facts, changed_data)
    done: list[Trial] = []
    try:
        _train_all(synthetic, loaded, recipe, chosen, done)
    except KeyboardInterrupt:
        say(f"Stopped after {len(done)} of {recipe.trainings(info.ipc, info.factor)} trainings.")
        _print_rows(summarise(done), recipe, info.ipc)
        raise
    rows = summarise(done)
    picture = plot or files.beside(path, ".png")
    whole = [row for row in rows if row.epochs == recipe.epochs]
    accuracy_plot(whole, f"{path.stem}: {recipe.network.label()}, {recipe.epochs} epochs", picture)
    if as_json:
        table = judged(accuracy_rows(rows, recipe), info.ipc)
        document = {
            "rows": [dataclasses.asdict(row) for row in rows],
            "accuracy": table,
            "advice": advice(table),
            "data_changed": is_changed,
        }
        print_json({**document, "plot": str(picture)})
    else:
        _print_rows(rows, recipe, info.ipc)
        say(f"Drew {picture}")


def preview(path: SetFile, out: Annotated[Path, typer.Argument(help="PNG file to write.")]) -> None:
    """Draw a condensed set as a PNG: one row per class, one column per rank."""
    from mdc_core.delivery.preview import preview_png

    info, tiles = rankmajor.read(files.read(path))
    files.write(out, preview_png(tiles, info))
    say(f"Drew {out}: {len(info.classes)} classes, {len(tiles)} ranks")


def import_released(
    released: Annotated[Path, typer.Argument(help="A data_*.pt file from the paper's released code.")],
    out: Annotated[Path, typer.Argument(help="Set file to write.")],
    data: Annotated[str, typer.Option(help="The data set that it was condensed from.")],
    factor: Annotated[int, typer.Option(help="Its multi-formation factor (f).")] = 2,
    force: Force = False,
    data_root: DataRoot = DEFAULT_ROOT,
    download: Download = False,
) -> None:
    """Convert a set from the paper's released code, to evaluate, preview or deliver it."""
    from mdc_core.data.load import load
    from mdc_core.data.released import import_released as convert
    from mdc_core.data.synthetic import SyntheticSet

    files.check_target(out)
    if out.exists() and not force:
        raise MdcError(f"{out} exists: choose another file, or add --force to overwrite it")
    tiles, info = convert(released, factor)
    facts = _facts_at(data, info["image_size"])
    loaded = load(data, data_root, image_size=facts.image_size, download=download)
    if len(info["classes"]) != loaded.train.num_classes:
        raise MdcError(
            f"{released} has {len(info['classes'])} classes, but {data} has {loaded.train.num_classes}: "
            "give the data set that it was made from"
        )
    if (info["image_size"], info["channels"]) != (loaded.train.image_size, loaded.train.channels):
        raise MdcError(
            f"{released} has images of {info['image_size']} pixels and {info['channels']} channels, but {data} has "
            f"{loaded.train.image_size} and {loaded.train.channels}: give the data set that it was made from"
        )
    synthetic = SyntheticSet(tiles, loaded.train.image_size)
    files.write(out, rankmajor.pack(synthetic.quantised().numpy(), synthetic.info(loaded.train)))
    files.write_run(out, {"data": portable_source(data), "data_sha256": loaded.train.fingerprint()})
    say(f"Wrote {out}. Next: mdc evaluate {out}")


def _facts_at(source: str, image_size: int) -> DataFacts:
    """The facts of the data that a set was made from; a folder or zip is taken at the set's image size."""
    from mdc_core.data.load import kind_of, survey

    return survey(source, image_size=image_size if kind_of(source) in ("folder", "zip") else None)


def _check_alike(path: Path, info: SetInfo, facts: DataFacts) -> None:
    """Raise `MdcError` if the set cannot have been made from such data."""
    ours = (len(info.classes), info.image_size, info.channels)
    theirs = (len(facts.classes), facts.image_size, facts.channels)
    if ours != theirs:
        raise _other_data(path, info, facts)


def _other_data(path: Path, info: SetInfo, facts: DataFacts) -> MdcError:
    return MdcError(
        f"{path} has {len(info.classes)} classes of {info.image_size}-pixel images, but {facts.name!r} has "
        f"{len(facts.classes)} of {facts.image_size}: give the data that it was made from with --data"
    )


def _warn_of_change(path: Path, facts: DataFacts, is_accepted: bool) -> None:
    """Warn that the training images have changed. `MdcError` if some of them may be test images now."""
    text = f"the training images of {facts.name!r} have changed since {path} was made"
    if facts.held_out and not is_accepted:
        raise MdcError(
            f"{text}. The test images are held out from the same images, so some may have been trained on: give the "
            "original data with --data, or add --changed-data to test anyway"
        )
    say(f"Warning: {text}", "yellow")


def _delivered(path: Path, info: SetInfo, tiles: NDArray[np.uint8], data: DataSet) -> SyntheticSet:
    """The set as devices see it. `MdcError` if its classes differ from those of the data."""
    import torch

    from mdc_core.data.synthetic import SyntheticSet

    if info.classes != data.train.classes:
        raise _other_data(path, info, data.facts())
    return SyntheticSet(torch.from_numpy(tiles.copy()).float() / 255, info.image_size)


def _train_all(
    synthetic: SyntheticSet, data: DataSet, recipe: EvaluateConfig, device: str, done: list[Trial]
) -> None:
    """Run every training with a progress bar. Each is added to `done`, so the results survive an interruption."""
    from mdc_core.training.evaluate import evaluate as trainings

    with progress_bar() as bar:
        task = bar.add_task(
            "evaluating", total=recipe.trainings(len(synthetic.tiles), synthetic.factor), detail=""
        )
        for trial in trainings(synthetic, data, recipe, device):
            done.append(trial)
            detail = f"k={trial.k} {trial.source}: {100 * trial.accuracy:.1f} %"
            bar.update(task, advance=1, detail=detail)


def _print_rows(rows: list[Row], recipe: EvaluateConfig, ipc: int) -> None:
    from mdc_core.training.evaluate import accuracy_rows

    networks = (
        "1 network per size" if recipe.repeats == 1 else f"{recipe.repeats} networks per size, mean ± std"
    )
    title = f"{recipe.network.label()}, {recipe.epochs} epochs, {networks}"
    best = [row.best for row in rows if row.source == "condensed"]
    accuracy_table(title, judged(accuracy_rows(rows, recipe), ipc), best)
