"""The commands that work without a service, on scikit-learn's digits."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

import mdc_cli.local
import mdc_cli.output
import mdc_cli.run_summary
import mdc_core.condensation.condense
import mdc_core.data.load
import mdc_core.training.calibrate
from mdc_cli.main import app
from mdc_cli.output import progress_bar
from mdc_core.condensation import checkpoint
from mdc_core.condensation.condense import Step, prepare
from mdc_core.config.estimate import Speed
from mdc_core.config.presets import NAMED
from mdc_core.delivery import rankmajor
from mdc_core.delivery.verdict import advice, judged

pytestmark = pytest.mark.slow

TOY = [
    "--set", "inner_iterations=1", "--set", "n_data=64", "--set", "batch_real=8", "--set", "mls_period=2",
    "--set", "network.width=4", "--ipc", "2", "--outer-loops", "6",
]  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def condense(out: Path, *more: object) -> Result:
    torch.set_num_threads(1)
    return run("condense", "digits", "--out", out, *TOY, *more)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "set.safetensors"
    result = condense(path)
    assert result.exit_code == 0, result.output
    return path


def test_condense_writes_a_set_and_what_it_was_made_from(made: Path) -> None:
    info, tiles = rankmajor.read(made.read_bytes())
    assert tiles.shape == (2, 10, 1, 1, 8, 8)
    assert info.classes == tuple("0123456789")
    run_file = json.loads(made.with_name("set.json").read_text())
    assert run_file["data"] == "digits"
    assert run_file["condense"]["network"] == {"name": "convnet", "depth": 2, "width": 4}
    assert made.with_name("set.checkpoint").exists()  # from which more loops may follow


def test_condense_says_what_it_wrote_as_json(tmp_path: Path) -> None:
    result = condense(tmp_path / "s.safetensors", "--json")
    summary = json.loads(result.stdout)
    assert summary["sha256"] == rankmajor.sha256((tmp_path / "s.safetensors").read_bytes())


def test_a_dry_run_tells_memory_and_time_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    told = condense(out, "--dry-run")
    assert told.exit_code == 0, told.output
    measuring, words = told.stderr.splitlines()
    assert measuring == "Measuring how fast cpu trains convnet-d2-w4"
    assert words.startswith(
        "digits: 10 classes, 1438 training images and 359 test images, 8 pixels, grey. "
        "Method mdc, preset digits, convnet-d2-w4, ipc 2: about "
    )
    assert re.search(r"about .+ for 6 outer loops \(.+ each\), \d\.\d GB of memory\.\n$", told.stderr)
    expected = json.loads(condense(out, "--dry-run", "--json").stdout)
    assert expected["seconds_per_outer_loop"] * 6 == pytest.approx(expected["seconds"])
    assert expected["memory_bytes"] > 10**8
    assert expected["facts"] == NAMED["digits"].model_dump(mode="json")
    assert (expected["preset"], expected["network"]) == ("digits", "convnet-d2-w4")
    assert list(tmp_path.iterdir()) == []


def pictures(base: Path) -> Path:
    """Two classes of 20 pictures of 80 x 100 pixels, and a file beside them."""
    drawn = np.random.default_rng(0)
    for label, level in (("dark", 60), ("light", 190)):
        (base / "train" / label).mkdir(parents=True)
        for number in range(20):
            pixels = np.clip(drawn.normal(level, 30, (80, 100, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(base / f"train/{label}/{number}.png")
    (base / "README.txt").write_text("mine")
    return base


def test_own_pictures_from_the_side_to_the_evaluation(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder, out = pictures(tmp_path / "pictures"), tmp_path / "s.safetensors"
    told = run("condense", folder, "--dry-run", *TOY)
    assert told.stderr.partition("\n")[2].startswith(
        "pictures: 2 classes, 36 training images and 4 test images (held out, as there is no test split), "
        "64 pixels (resized from 80), colour, files or folders ignored: 1. "
        "Method mdc, preset photos, convnet-d4-w4, ipc 2: about "
    ), told.stderr
    side = ["--image-size", "12", "--set", "network.depth=2"]
    made = run("condense", folder, "--out", out, *TOY, *side, "--json")
    assert made.exit_code == 0, made.output
    summary = json.loads(made.stdout)
    assert (summary["facts"]["image_size"], summary["facts"]["own_side"], summary["ipc"]) == (12, 80, 2)
    assert summary["seconds"] > 0
    assert rankmajor.read(out.read_bytes())[0].image_size == 12
    recorded = json.loads(out.with_name("s.json").read_text())
    assert (recorded["image_size"], recorded["preset"]) == (12, "digits")
    judge = ("evaluate", out, "--epochs", "1", "--repeats", "1", "--k", "2", "--json")
    judged = run(*judge)
    assert judged.exit_code == 0, judged.output
    assert json.loads(judged.stdout)["data_changed"] is False
    pictured = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))
    pictured[0].unlink()  # another image is held out in its place
    changed = run(*judge)
    assert changed.exit_code == 1
    assert "some may have been trained on" in changed.output
    accepted = run(*judge, "--changed-data")
    assert accepted.exit_code == 0, accepted.output
    assert json.loads(accepted.stdout)["data_changed"] is True
    assert "have changed since" in accepted.stderr


def test_a_run_is_not_resumed_at_another_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = pictures(tmp_path / "pictures"), tmp_path / "s.safetensors"
    interrupt_after(monkeypatch, 2)
    small = ["--set", "network.depth=2", "--preset", "cifar10"]
    assert run("condense", folder, "--out", out, *TOY, *small, "--image-size", "12").exit_code == 130
    monkeypatch.undo()
    measured_nothing(monkeypatch)
    refused = run("condense", folder, "--out", out, *TOY, *small, "--resume")
    assert refused.exit_code == 1
    assert "give the --image-size of the first run (about 12)" in refused.output


def interrupt_after(monkeypatch: pytest.MonkeyPatch, loops: int) -> None:
    """As if Ctrl-C had been pressed after so many outer loops."""
    whole = mdc_core.condensation.condense.condense

    def interrupted(*arguments: Any, **options: Any) -> Iterator[Step]:
        for step in whole(*arguments, **options):
            yield step
            if step.outer == loops:
                raise KeyboardInterrupt

    monkeypatch.setattr(mdc_core.condensation.condense, "condense", interrupted)


def measured_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a measurement, and the decoding of pictures, an error."""

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("too late to refuse")

    monkeypatch.setattr(mdc_core.training.calibrate, "calibrate", refused)
    monkeypatch.setattr(mdc_core.data.load, "load", refused)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ipc", "19"], "needs (start_index + 1)·ipc·factor² = 19 of each class, but 'pictures' has"),
        (["--set", "speed=9"], "speed: Extra inputs"),
        (["--set", "network.depth=7"], "lower the depth"),
        (["--preset", "mine"], "there is no preset 'mine'"),
        (["--image-size", "3"], "image_size is 3: it must be 4..1024"),
        (["--out", "set.json"], "must end in .safetensors"),
        (["--out", "old.safetensors"], "add --resume to resume it"),
        (["--resume", "--out", "old.safetensors"], "not a checkpoint"),
        (["--resume", "--out", "none.safetensors"], "cannot read none.checkpoint"),
        (["--device", "tpu9"], "device 'tpu9' cannot be used"),
    ],
)
def test_what_can_be_refused_is_before_anything_is_measured_or_decoded(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(Path("pictures"))
    Path("old.checkpoint").write_bytes(b"x")
    measured_nothing(monkeypatch)
    refused = run("condense", "pictures", "--ipc", "2", *arguments)
    assert refused.exit_code == 1
    assert message in refused.output
    assert refused.output.startswith("Error:"), refused.output


LONG = ["--outer-loops", "60"]


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that takes half an hour for an outer loop of the toy, or believes so."""
    monkeypatch.setattr(
        mdc_core.training.calibrate, "calibrate", lambda *_: Speed(3025920 / 1790, 1e12, 1e-6)
    )


def test_more_than_a_day_needs_a_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    refused = condense(tmp_path / "s.safetensors", *LONG)
    assert refused.exit_code == 1
    assert "To start it anyway, add --yes" in refused.stderr
    assert not (tmp_path / "s.safetensors").exists()
    found = re.search(r"takes about 60 min with: (--.*)\n", refused.stderr)
    assert found, refused.stderr
    assert found[1].split() == ["--outer-loops", "2", "--set", "mls_period=1"]
    again = condense(tmp_path / "s.safetensors", "--dry-run", "--json", *LONG, *found[1].split())
    assert json.loads(again.stdout)["seconds"] == pytest.approx(3580, abs=1)
    told = condense(tmp_path / "s.safetensors", "--dry-run", *LONG)
    assert (told.exit_code, "To shorten it" in told.stderr) == (0, True)
    assert condense(tmp_path / "s.safetensors", "--yes", *LONG).exit_code == 0


@pytest.mark.parametrize("answer", ["y", "n"])
def test_on_a_terminal_it_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    slow(monkeypatch)
    monkeypatch.setattr(mdc_cli.run_summary, "on_terminal", lambda: True)
    command = ["condense", "digits", "--out", str(tmp_path / "s.safetensors"), *TOY, *LONG]
    asked = CliRunner().invoke(app, command, input=f"{answer}\n")
    assert "Start it anyway?" in asked.output
    assert asked.exit_code == (0 if answer == "y" else 1), asked.output
    assert (tmp_path / "s.safetensors").exists() == (answer == "y")


def test_progress_without_a_terminal_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("mdc_cli.output.time.monotonic", lambda: now[0])
    lines: list[str] = []
    monkeypatch.setattr(mdc_cli.output.people, "print", lambda line, **_: lines.append(line))
    with progress_bar() as bar:
        task = bar.add_task("condensing", total=100, detail="")
        for step in range(1, 101):
            now[0] += 1
            bar.update(task, completed=step, detail=f"loss {step}")
        bar.update(task, detail="")
    assert [line.split(",")[0] for line in lines] == [
        f"condensing {step}/100" for step in (0, 31, 61, 91, 100)
    ]
    assert lines[1].endswith("loss 31")
    lines.clear()
    with progress_bar() as bar:  # every step takes longer than a line waits
        task = bar.add_task("condensing", total=6, completed=2, detail="")
        for step in (2, 3, 4):
            bar.update(task, completed=step)
            now[0] += 60
    assert lines == ["condensing 2/6", "condensing 3/6, 60 s", "condensing 4/6, 2 min, left 2 min"]


def test_a_table_wider_than_the_terminal_is_lines_of_which_none_is_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mdc_cli.output, "tables", Console(highlight=False, markup=False, width=80))
    row = [f"job_{'0' * 32}", "running", f"ds_{'1' * 32}", "a-set-of-" + "x" * 54, ""]
    mdc_cli.output.table("", ["job", "state", "data set", "set", "progress"], [row, row])
    assert capsys.readouterr().out.splitlines() == 2 * [
        row[0],
        "  state: running",
        f"  data set: {row[2]}",
        f"  set: {row[3]}",
    ]
    rows = [{"k": 1, "epochs": 9, "mdc_mean": 0.6, "mdc_std": 0.01, "random_mean": 0.5, "random_std": 0.02}]
    rows[0] |= {"shrunk_mean": 0.5, "shrunk_std": 0.02, "repeats": 2}
    mdc_cli.output.accuracy_table("", rows, best=[0.6])
    assert "│" in capsys.readouterr().out


def test_a_command_to_copy_is_never_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mdc_cli.output, "people", Console(highlight=False, markup=False, width=20))
    mdc_cli.output.say("Look at it with: mdc watch job_0123456789")
    assert capsys.readouterr().out == "Look at it with: mdc watch job_0123456789\n"


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.safetensors"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        result = condense(path)
    assert result.exit_code == 130
    assert "Stopped after outer loop 3 of 6" in result.output
    assert "--resume" in result.output
    assert not path.exists()

    again = condense(path)
    assert again.exit_code == 1
    assert "add --resume" in again.output

    resumed = condense(path, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert path.read_bytes() == made.read_bytes()


def test_a_finished_set_is_not_overwritten_and_goes_on_with_more_loops(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    assert condense(path, "--outer-loops", "3").exit_code == 0
    short = path.read_bytes()
    again = condense(path, "--outer-loops", "3")
    assert again.exit_code == 1
    assert "--force" in again.output
    assert "--resume" in again.output
    assert path.read_bytes() == short
    further = condense(path, "--resume")  # to the 6 loops of the settings
    assert further.exit_code == 0, further.output
    assert path.read_bytes() == made.read_bytes()
    forced = condense(path, "--outer-loops", "3", "--force")
    assert forced.exit_code == 0, forced.output
    assert path.read_bytes() == short
    both = condense(path, "--resume", "--force")
    assert both.exit_code == 1
    assert "leave one of them out" in both.output


def test_networks_of_a_pool_are_kept_beside_the_data_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole files only; the next run trains none; a folder that cannot be written costs time alone."""
    torch.set_num_threads(1)
    pool = [
        "--set",
        "method=feature",
        "--set",
        "pool=2",
        "--set",
        "pool_samples=64",
        "--set",
        "network.width=4",
    ]
    schedule = ["--ipc", "2", "--outer-loops", "2", "--set", "inner_iterations=1", "--set", "batch_real=8"]

    def made(name: str, root: Path) -> bytes:
        out = tmp_path / f"{name}.safetensors"
        result = run("condense", "digits", "--out", out, "--data-root", root / "datasets", *pool, *schedule)
        assert result.exit_code == 0, result.output
        assert re.search(r"each\), .+ for the network pool, \d\.\d GB", result.stderr)
        return out.read_bytes()

    first = made("first", tmp_path)
    kept = sorted((tmp_path / "pools").iterdir())
    assert [len(path.name) for path in kept] == [64, 64]
    with monkeypatch.context() as patch:
        patch.setattr(
            "mdc_core.condensation.pool.Pool._train", lambda *_: pytest.fail("a network was trained again")
        )
        assert made("second", tmp_path) == first
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut/pools").write_text("in the way of a folder")
    assert made("third", tmp_path / "shut") == first
    kept[0].write_bytes(b"damaged")
    assert made("fourth", tmp_path) == first
    assert kept[0].read_bytes() != b"damaged"
    assert sorted((tmp_path / "pools").iterdir()) == kept


def test_evaluate_prints_a_table_and_draws_a_plot(made: Path) -> None:
    result = run("evaluate", made, "--epochs", "2", "--repeats", "2", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [(row["k"], row["source"]) for row in rows] == [
        (1, "condensed"),
        (1, "random"),
        (2, "condensed"),
        (2, "random"),
    ]
    assert all(0 <= row["mean"] <= 1 and row["repeats"] == 2 for row in rows)
    with Image.open(made.with_suffix(".png")) as plot:
        assert plot.size[0] > 400
    found = json.loads(result.stdout)
    assert found["accuracy"] == judged(found["accuracy"], 2)
    assert [row["mdc_mean"] for row in found["accuracy"]] == [row["mean"] for row in rows[::2]]
    assert found["advice"] == advice(found["accuracy"])
    table = run("evaluate", made, "--epochs", "1", "--repeats", "1", "--k", "2")
    assert "convnet-d2-w4, 1 epochs" in table.output
    assert "4 tests" in table.output
    assert "worth it" in table.output


def test_a_table_marks_what_is_not_worth_its_bytes_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures = [(1, 0.5, 0.4, 0.3), (2, 0.4, 0.3, 0.2), (3, 0.6, 0.7, 0.5), (4, 0.7, 0.6, 0.8)]
    rows = [
        {
            "network": "net",
            "epochs": 1,
            "k": k,
            **{f"{name}_mean": mean for name, mean in zip(("mdc", "random", "shrunk"), means, strict=True)},
            **{f"{name}_std": 0.0 for name in ("mdc", "random", "shrunk")},
            "repeats": 1,
        }
        for k, *means in figures
    ]
    shown = {"name": "toy", "version": 1, "accuracy": judged(rows, 4)}
    monkeypatch.setattr("mdc_cli.client.Service.call", lambda *_, **__: shown)
    told = run("sets", "toy", "--key", "k").output
    marks = ("yes", "no: smaller k", "no: random", "no: shrunk")
    for line, mark, (_, mean, random, shrunk) in zip(told.splitlines()[4:8], marks, figures, strict=True):
        assert [f"{100 * value:.2f} %" in line for value in (mean, random, shrunk)] == [True] * 3
        assert "±" not in line
        assert mark in line
    assert "Not worth the bytes: k = 2 (worse than a smaller subset); k = 3 (not better than random" in told
    assert "condense again for longer, with every size in the loss" in told.replace("\n", " ")
    earlier = [{name: value for name, value in row.items() if name[:6] != "shrunk"} for row in rows[:1]]
    shown["accuracy"] = earlier  # of a release that knew no verdicts
    told = run("sets", "toy", "--key", "k").output
    assert "shrunk" not in told
    assert "Not worth" not in told


def test_preview_draws_the_set(made: Path, tmp_path: Path) -> None:
    result = run("preview", made, tmp_path / "out.png")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out.png") as picture:
        picture.verify()


def test_import_converts_a_released_file(tmp_path: Path) -> None:
    images, labels = torch.rand(30, 1, 8, 8), torch.arange(10).repeat_interleave(3)
    torch.save([images, labels], tmp_path / "data_best.pt")
    out = tmp_path / "imported.safetensors"
    result = run("import", tmp_path / "data_best.pt", out, "--data", "digits", "--factor", "2")
    assert result.exit_code == 0, result.output
    info, tiles = rankmajor.read(out.read_bytes())
    assert (info.ipc, info.factor, tiles.shape) == (3, 2, (3, 10, 4, 1, 4, 4))
    assert run("evaluate", out, "--epochs", "1", "--repeats", "1", "--k", "1").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["condense", "cifar11"], "cifar10"),
        (["condense", "digits", "--ipc", "0"], "ipc: Input should be greater than or equal to 1"),
        (["condense", "digits", "--ipc", "500"], "= 500 of each class, but 'digits' has a class with 139"),
        (["condense", "digits", "--set", "factor=9"], "factor"),
        (["condense", "digits", "--set", "speed=9"], "speed: Extra inputs are not permitted"),
        (["condense", "digits", "--set", "class_wise"], "has no '='"),
        (["condense", "digits", "--set", "batch_syn_max=3"], "batch_syn_max is 3, but a class has"),
        (["condense", "digits", "--subset-loss", "some"], "'mls', 'none' or 'all'"),
        (["condense", "digits", "--out", "set.json"], "must end in .safetensors"),
        (["condense", "digits", "--out", "/proc/x/set.safetensors"], "cannot write to /proc/x"),
        (["condense", "digits", "--device", "tpu9"], "device 'tpu9' cannot be used"),
        (["condense", "digits", "--preset", "mine"], "there is no preset 'mine'"),
        (["condense", "digits", "--resume", "--out", "none.safetensors"], "cannot read none.checkpoint"),
        (["condense", "cifar10", "--data-root", "nowhere"], "nowhere"),
        (["evaluate", "missing.safetensors", "--data", "digits"], "cannot read missing.safetensors"),
        (["evaluate", "missing.safetensors"], "give them with --data"),
        (["preview", "missing.safetensors", "out.png"], "cannot read missing.safetensors"),
        (["import", "missing.pt", "out.safetensors", "--data", "digits"], "missing.pt"),
    ],
)
def test_wrong_input_is_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.output.removeprefix("Reading cifar10\n").startswith("Error:"), result.output
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_file_that_is_no_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not a set at all")
    result = run("preview", tmp_path / "x.safetensors", tmp_path / "out.png")
    assert result.exit_code == 1
    assert not (tmp_path / "out.png").exists()


def test_sizes_out_of_range_are_refused(made: Path) -> None:
    result = run("evaluate", made, "--k", "3")
    assert result.exit_code == 1
    assert "k is 3, but the set has 2 images per class" in result.output


def test_a_set_of_other_data_is_refused(made: Path, tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "own" / "train" / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (16, 16), (number * 40, 80, 120)).save(
                tmp_path / f"own/train/{label}/{number}.png"
            )
    result = run("evaluate", made, "--data", tmp_path / "own")
    assert result.exit_code == 1
    assert "give the data that it was made from" in result.output


SMALL = ["--image-size", "8", "--set", "network.width=4", "--ipc", "2"]


@pytest.fixture
def just_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had computed nothing before the command."""
    monkeypatch.setattr(mdc_cli.local, "clock", time.monotonic)
    torch.set_num_threads(1)


@pytest.mark.usefixtures("just_begun")
def test_a_run_takes_the_time_that_it_is_given(tmp_path: Path) -> None:
    folder, out = pictures(tmp_path / "pictures"), tmp_path / "s.safetensors"
    begun = time.monotonic()
    made = run("condense", folder, "--out", out, *SMALL, "--minutes", "0.1", "--data-root", tmp_path / "d")
    assert made.exit_code == 0, made.output
    assert 2 < time.monotonic() - begun < 15
    assert "Method feature, preset digits, convnet-d2-w4, ipc 2: about " in made.stderr
    assert re.search(r"Chosen for the time: \d networks? of width 4, trained on \d+ images each", made.stderr)
    recorded = json.loads(out.with_name("s.json").read_text())["condense"]
    assert f"then {recorded['outer_loops'] * recorded['inner_iterations']} updates of the set" in made.stderr
    loops = recorded["outer_loops"]
    further = run(
        "condense",
        folder,
        "--out",
        out,
        *SMALL,
        "--outer-loops",
        str(loops + 1),
        "--resume",
        "--data-root",
        tmp_path / "d",
    )
    assert further.exit_code == 0, further.output
    now = json.loads(out.with_name("s.json").read_text())["condense"]
    assert now == recorded | {"outer_loops": loops + 1}


@pytest.mark.usefixtures("just_begun")
@pytest.mark.parametrize("stopped", [prepare, mdc_core.condensation.condense.condense])
def test_a_run_of_a_given_time_goes_on_with_the_schedule_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: Any
) -> None:
    """Whether it was stopped in the training of its pool or later, and however fast the machine is now."""
    folder, out = pictures(tmp_path / "pictures"), tmp_path / "s.safetensors"
    command = ["condense", folder, "--out", out, *SMALL, "--minutes", "0.1", "--data-root", tmp_path / "d"]
    whole = getattr(mdc_core.condensation.condense, stopped.__name__)

    def interrupted(config: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        for number, step in enumerate(whole(config, *arguments, **options), 1):
            yield step
            if number == 2 and config.pool_samples > 128:  # not in the pilot
                raise KeyboardInterrupt

    monkeypatch.setattr(mdc_core.condensation.condense, stopped.__name__, interrupted)
    first = run(*command)
    assert first.exit_code == 130, first.output
    monkeypatch.undo()
    _, began = checkpoint.from_bytes(out.with_name("s.checkpoint").read_bytes())
    assert began.pool > 1
    monkeypatch.setattr(mdc_core.training.calibrate, "calibrate", lambda *_: Speed(1e6, 1e6, 1.0))
    assert "add --resume to resume it" in run(*command).output
    resumed = run(*command, "--resume")
    assert resumed.exit_code == 0, resumed.output
    recorded = json.loads(out.with_name("s.json").read_text())["condense"]
    assert recorded == began.model_dump(mode="json")


def test_own_pictures_get_ten_minutes_and_are_asked_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mdc_cli.local, "clock", time.monotonic)
    monkeypatch.setattr(mdc_core.training.calibrate, "calibrate", lambda *_: Speed(2e11, 2.5e9, 1e-3))
    folder = pictures(tmp_path / "pictures")
    told = run("condense", folder, "--dry-run")
    assert told.exit_code == 0, told.output
    assert "about 9.3 min" in told.stderr
    assert ". The default ipc" not in told.stderr
    more = run("condense", folder, "--dry-run", "--minutes", "3000")
    assert "To shorten it" not in more.stderr
    assert "more time would bring nothing" in more.stderr
    refused = run("condense", folder, "--minutes", "5", "--outer-loops", "3")
    assert "minutes chooses outer_loops by itself" in refused.output
    short = run("condense", folder, "--dry-run", "--minutes", "0.01")
    assert (short.exit_code, "ask for more minutes" in short.output) == (1, True)
