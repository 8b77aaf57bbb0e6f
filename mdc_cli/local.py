"""Commands that work on this machine without a service: condense, evaluate, preview, import."""

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
    str, typer.Argument(help=f"A named data set ({', '.join(NAMED)}), or a folder, zip or npz of your own.")
]
SetFile = Annotated[
    Path, typer.Argument(metavar="SET", help="A condensed set: the file that condense wrote.")
]
Ipc = Annotated[int | None, typer.Option(help="Images per class of the whole set, N. [default: 10]")]
Method = Annotated[
    str | None,
    typer.Option(
        help=f"What is matched: {', '.join(METHODS)}. [default: feature; mdc for published data sets and presets]"
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        help="How long it may take, which decides the schedule. [default: 10 for own data without a schedule]"
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any other setting, such as class_wise=true; see docs/guide.md."
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(help="Side of the images of a folder or zip, 4..1024. [default: theirs, at most 64]"),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
Yes = Annotated[bool, typer.Option("--yes", help="Start it even if it takes more than a day.")]
DataRoot = Annotated[Path, typer.Option(help="Folder of the named data sets.", envvar="MDC_DATA_ROOT")]
Download = Annotated[bool, typer.Option("--download", help="Download a named data set that is missing.")]
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
    outer_loops: Annotated[int | None, typer.Option(help="Outer loops T; fewer is faster and worse.")] = None,
    subset_loss: Annotated[str | None, typer.Option(help="mls (MDC), none (Baseline C) or all.")] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random follows from it.")] = None,
    settings: Settings = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint beside the file.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only tell what was read, and the memory and time it would take."),
    ] = False,
    force: Force = False,
    yes: Yes = False,
    device: Device = "auto",
    data_root: DataRoot = DEFAULT_ROOT,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Condense a data set into a few synthetic images per class, good at every size.

    Ctrl-C saves a checkpoint; the same command with --resume goes on from it, and with more --outer-loops from a
    finished set too.
    """
    begun = clock()
    given = {
        "method": method,
        "ipc": ipc,
        "outer_loops": outer_loops,
        "subset_loss": subset_loss,
        "seed": seed,
    }
    overrides = merge(
        {name: value for name, value in given.items() if value is not None}, parse_settings(settings)
    )
    planned = plan(dataset, image_size, preset, overrides, minutes)
    path = None if dry_run else files.check_target(out or planned.default_path())
    state = None
    if path is not None and resume:
        if force:
            raise MdcError("--resume goes on and --force starts again: leave one of them out")
        planned, state = resumed(path, planned, [name for name in SCHEDULE if name in overrides])
    elif path is not None and not force:
        check_free(path)
    chosen = select_device(device)
    # Named sets can be missing, which is to be said before anything is measured; headers of others have been read. A
    # schedule that is to be decided is tried out on the data.
    is_first = planned.is_named or planned.choice.minutes is not None
    data = planned.load(data_root, download) if is_first and not dry_run else None
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
        str | None, typer.Option(help="The data set it was made from. [default: as recorded]")
    ] = None,
    k: Annotated[
        list[int] | None, typer.Option(help="Size to evaluate; may be repeated. [default: all]")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each training.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Networks per size. [default: 3]")] = None,
    settings: Settings = None,
    plot: Annotated[Path | None, typer.Option(help="PNG to draw. [default: SET.png]")] = None,
    changed_data: Annotated[
        bool, typer.Option("--changed-data", help="Test on held-out images even if the data have changed.")
    ] = False,
    device: Device = "auto",
    data_root: DataRoot = DEFAULT_ROOT,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Train networks on the first k images per class, for every k, beside real images; table, verdicts and plot."""
    from mdc_cli.plot import accuracy_plot
    from mdc_core.data.load import load
    from mdc_core.training.evaluate import accuracy_rows, summarise

    run = files.read_run(path)
    source = data or run.get("data")
    if source is None:
        raise MdcError(f"{files.run_path(path)} does not say what {path} was made from: name it with --data")
    info, tiles = rankmajor.read(files.read(path))
    facts = _facts_at(source, info.image_size)
    _check_alike(path, info, facts)
    given = {"epochs": epochs, "repeats": repeats, "sizes": k or None}
    overrides = {name: value for name, value in given.items() if value is not None}
    if "condense" in run:  # the network that was matched is the one to judge by
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
        _tell_of_change(path, facts, changed_data)
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


def preview(path: SetFile, out: Annotated[Path, typer.Argument(help="PNG to write.")]) -> None:
    """Draw a condensed set: a row per class, a column per rank."""
    from mdc_core.delivery.preview import preview_png

    info, tiles = rankmajor.read(files.read(path))
    files.write(out, preview_png(tiles, info))
    say(f"Drew {out}: {len(info.classes)} classes, {len(tiles)} ranks")


def import_released(
    released: Annotated[Path, typer.Argument(help="A data_*.pt file of the released code.")],
    out: Annotated[Path, typer.Argument(help="Set to write.")],
    data: Annotated[str, typer.Option(help="The data set that it was condensed from.")],
    factor: Annotated[int, typer.Option(help="Its multi-formation factor f.")] = 2,
    force: Force = False,
    data_root: DataRoot = DEFAULT_ROOT,
    download: Download = False,
) -> None:
    """Convert a set that the released code wrote, so that it can be evaluated, previewed and delivered."""
    from mdc_core.data.load import load
    from mdc_core.data.released import import_released as convert
    from mdc_core.data.synthetic import SyntheticSet

    files.check_target(out)
    if out.exists() and not force:
        raise MdcError(f"{out} is there already: name another file, or add --force to overwrite it")
    tiles, info = convert(released, factor)
    facts = _facts_at(data, info["image_size"])
    loaded = load(data, data_root, image_size=facts.image_size, download=download)
    if len(info["classes"]) != loaded.train.num_classes:
        raise MdcError(
            f"{released} holds {len(info['classes'])} classes, {data} has {loaded.train.num_classes}: "
            "name the data set it was made from"
        )
    if (info["image_size"], info["channels"]) != (loaded.train.image_size, loaded.train.channels):
        raise MdcError(
            f"{released} holds images of {info['image_size']} pixels and {info['channels']} channels, {data} has "
            f"{loaded.train.image_size} and {loaded.train.channels}: name the data set it was made from"
        )
    synthetic = SyntheticSet(tiles, loaded.train.image_size)
    files.write(out, rankmajor.pack(synthetic.quantised().numpy(), synthetic.info(loaded.train)))
    files.write_run(out, {"data": portable_source(data), "data_sha256": loaded.train.fingerprint()})
    say(f"Wrote {out}. Next: mdc evaluate {out}")


def _facts_at(source: str, image_size: int) -> DataFacts:
    """What is known of data that a set of such images was made from: pictures are read at that side."""
    from mdc_core.data.load import kind_of, survey

    return survey(source, image_size=image_size if kind_of(source) in ("folder", "zip") else None)


def _check_alike(path: Path, info: SetInfo, facts: DataFacts) -> None:
    """Raise `MdcError` when the set is not of such data."""
    ours = (len(info.classes), info.image_size, info.channels)
    theirs = (len(facts.classes), facts.image_size, facts.channels)
    if ours != theirs:
        raise _other_data(path, info, facts)


def _other_data(path: Path, info: SetInfo, facts: DataFacts) -> MdcError:
    return MdcError(
        f"{path} has {len(info.classes)} classes of {info.image_size}-pixel images, {facts.name!r} has "
        f"{len(facts.classes)} of {facts.image_size}: evaluate it on the data it was made from (--data)"
    )


def _tell_of_change(path: Path, facts: DataFacts, is_accepted: bool) -> None:
    """Warn that the training images are other ones; `MdcError` where some of them may be test images now."""
    text = f"the training images of {facts.name!r} are not those that {path} was made from"
    if facts.held_out and not is_accepted:
        raise MdcError(
            f"{text}: the data have changed, and as the test images are held out from the same ones, some may have "
            "been trained on. Name the data as they were with --data, or add --changed-data to test all the same"
        )
    say(f"Warning: {text}; the data have changed since", "yellow")


def _delivered(path: Path, info: SetInfo, tiles: NDArray[np.uint8], data: DataSet) -> SyntheticSet:
    """The set as devices see it; `MdcError` when its classes are not those of the data."""
    import torch

    from mdc_core.data.synthetic import SyntheticSet

    if info.classes != data.train.classes:
        raise _other_data(path, info, data.facts())
    return SyntheticSet(torch.from_numpy(tiles.copy()).float() / 255, info.image_size)


def _train_all(
    synthetic: SyntheticSet, data: DataSet, recipe: EvaluateConfig, device: str, done: list[Trial]
) -> None:
    """Every training under a progress bar, each added to `done`, which so outlives an interruption."""
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
