"""The commands that work without a service, on scikit-learn's digits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import mdc_core.condense
from mdc_cli.main import app
from mdc_cli.output import duration
from mdc_core import rankmajor
from mdc_core.condense import Step

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
    assert not made.with_name("set.checkpoint").exists()


def test_condense_says_what_it_wrote_as_json(tmp_path: Path) -> None:
    result = condense(tmp_path / "s.safetensors", "--json")
    summary = json.loads(result.stdout)
    assert summary["sha256"] == rankmajor.sha256((tmp_path / "s.safetensors").read_bytes())


def test_a_dry_run_tells_memory_and_time_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    told = condense(out, "--dry-run")
    assert told.exit_code == 0, told.output
    assert re.search(r"About .+ for 6 outer loops \(.+ each\), \d\.\d GB of memory", told.output)
    expected = json.loads(condense(out, "--dry-run", "--json").stdout)
    assert expected["seconds_per_outer_loop"] * 6 == pytest.approx(expected["seconds_total"])
    assert expected["memory_bytes"] > 10**8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0321, "0.032 s"), (89, "89 s"), (725, "12 min"), (54_000, "15 h"), (4e5, "4.6 days")],
)
def test_durations_have_two_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.safetensors"
    whole = mdc_core.condense.condense

    def interrupted(*arguments: Any, **options: Any) -> Iterator[Step]:
        for step in whole(*arguments, **options):
            yield step
            if step.outer == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mdc_core.condense, "condense", interrupted)
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
    assert not path.with_name("s.checkpoint").exists()


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
        assert re.search(r"each\), .+\sfor\sits\snetworks,\s", result.output)
        return out.read_bytes()

    first = made("first", tmp_path)
    kept = sorted((tmp_path / "pools").iterdir())
    assert [len(path.name) for path in kept] == [64, 64]
    with monkeypatch.context() as patch:
        patch.setattr("mdc_core.pool.Pool._train", lambda *_: pytest.fail("a network was trained again"))
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
    table = run("evaluate", made, "--epochs", "1", "--repeats", "1", "--k", "2")
    assert "convnet-d2-w4, 1 epochs" in table.output


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
        (["condense", "digits", "--out", "set.json"], "end it in .safetensors"),
        (["condense", "digits", "--out", "/proc/x/set.safetensors"], "cannot write to /proc/x"),
        (["condense", "digits", "--device", "tpu9"], "device 'tpu9' cannot be used"),
        (["condense", "digits", "--preset", "mine"], "there is no preset 'mine'"),
        (["condense", "digits", "--resume", "--out", "none.safetensors"], "cannot read none.checkpoint"),
        (["condense", "cifar10", "--data-root", "nowhere"], "nowhere"),
        (["evaluate", "missing.safetensors", "--data", "digits"], "cannot read missing.safetensors"),
        (["evaluate", "missing.safetensors"], "name it with --data"),
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
    assert result.output.startswith("Error:"), result.output
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
    assert "evaluate it on the data it was made from" in result.output
