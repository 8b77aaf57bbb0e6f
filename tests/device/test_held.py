"""Telling what a file holds, measuring what the device can spend, and planning without a connection."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mdc_core.delivery import rankmajor
from mdc_core.delivery.budget import Budget
from mdc_core.system import memory
from mdc_device import api, cli, client, files, profile
from mdc_device.cli import main

ACCESS = api.Access("mdc_1_secret", timeout_s=10, retries=1)


@pytest.fixture
def file(device: Any, tmp_path: Path) -> Path:
    """Subset 3, fetched."""
    api.fetch(device.url, "toy", tmp_path / "toy.mdc", k=3, access=ACCESS)
    return tmp_path / "toy.mdc"


def spoken(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


def test_status_tells_what_is_held(device: Any, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device.requests.clear()
    code, found, err = spoken(capsys, "status", file, "--json")
    data = device.subset(3)
    assert (code, err) == (0, "")
    assert found == {
        "set": "toy",
        "path": str(file),
        "version": 1,
        "k": 3,
        "ipc": 5,
        "bytes": len(data),
        "expected_bytes": len(data),
        "sha256": rankmajor.sha256(data),
        "verified": True,
        "damaged_ranks": [],
        "expired": False,
        "url": device.url,
        "signed": True,
        "intact": True,
        "trust": "local",
        "clock_behind": False,
        "part_bytes": 0,
        "repaired_ranks": [],
    }
    assert main(["status", str(file)]) == 0
    assert f"subset 3 of 5 of toy version 1\n{len(data)} bytes" in capsys.readouterr().out
    assert device.requests == []


def test_status_tells_of_damage_and_changes_nothing(
    device: Any, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = bytearray(device.subset(3) + b"more")
    damaged[rankmajor.rank_range(device.info, 2)[0]] ^= 1
    file.write_bytes(damaged)
    code, found, err = spoken(capsys, "status", file, "--json")
    assert (code, found["verified"], found["damaged_ranks"]) == (5, False, [2])
    assert found["bytes"] == found["expected_bytes"] + 4
    assert "verify --repair" in err
    assert main(["status", str(file)]) == 5
    assert "damaged: rank 2" in capsys.readouterr().out
    assert file.read_bytes() == damaged
    assert main(["verify", str(file), "--repair"]) == 0
    assert "repaired: rank 2" in capsys.readouterr().out
    assert main(["status", str(file)]) == 0


@pytest.mark.parametrize("words", [("status",), ("verify",), ("train",), ("shrink", "--k", "1")])
def test_a_file_that_was_never_fetched(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = spoken(capsys, words[0], tmp_path / "none.mdc", *words[1:])
    assert code == 1
    assert "none.mdc.manifest.json is missing" in err
    assert "mdc-device fetch" in err


def test_what_has_expired_is_not_used(
    file: Path, device: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device.manifest["expires"] = "2030-01-01T00:00:00Z"
    assert main(["fetch", device.url, "toy", "--k", "3", "--to", str(file)]) == 0
    device.manifest["expires"] = "2050-01-01T00:00:00Z"  # the server signs it anew
    monkeypatch.setattr(client, "now", lambda: datetime(2040, 1, 1, tzinfo=UTC))
    capsys.readouterr()
    commands = ["verify", "train", "shrink --k 1", "status"]
    for words in commands:
        command, *more = words.split()
        assert main([command, str(file), *more]) == 5
        said = capsys.readouterr()
        assert "expired" in said.err
        assert "mdc-device verify --repair" in said.err
        assert "or correct this device's clock" in said.err
    assert api.status(file).expired
    with pytest.raises(Exception, match="expired at 2030"):
        api.plan(manifest=files.manifest_of(file))
    assert file.read_bytes() == device.subset(3)
    device.requests.clear()
    assert main(["verify", str(file), "--repair"]) == 0
    assert device.ranges() == []  # the manifest alone
    for words in commands:
        command, *more = words.split()
        if command != "train":  # this set has no network
            assert main([command, str(file), *more]) == 0


def test_a_clock_that_is_behind_is_told(
    file: Path, device: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a device without a battery, after a power cut."""
    monkeypatch.setattr(client, "now", lambda: datetime(1970, 1, 1, tzinfo=UTC))
    for words in (
        ["plan", device.url, "toy"],
        ["fetch", device.url, "toy", "--k", "3", "--to", str(file)],
        ["grow", str(file), "--k", "4"],
        ["shrink", str(file), "--k", "3"],
        ["verify", str(file)],
        ["status", str(file)],
    ):
        assert main(words) == 0
        assert "clock is earlier than" in capsys.readouterr().err
    assert api.status(file).clock_behind


def test_a_plan_needs_no_connection(device: Any, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    room = ("--storage", rankmajor.subset_size(device.info, 4), "--have", 2, "--json")
    _, online, _ = spoken(capsys, "plan", device.url, "toy", *room)
    device.requests.clear()
    code, offline, _ = spoken(capsys, "plan", "--manifest", files.manifest_of(file), *room)
    assert (code, offline["k"], offline["limited_by"]) == (0, 4, "storage_bytes")
    assert offline == online
    assert device.requests == []
    code, _, err = spoken(capsys, "plan", device.url)
    assert code == 2
    assert "or a manifest" in err


def test_a_budget_from_a_file_counts_less_than_options(
    device: Any, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = tmp_path / "budget.json"
    sizes = [rankmajor.subset_size(device.info, k) for k in (1, 2)]
    budget.write_text(json.dumps({"storage_bytes": sizes[0], "flops": 1e9}))
    code, found, _ = spoken(capsys, "fetch", device.url, "toy", "--to", file, "--budget", budget, "--json")
    assert (code, found["k"], found["plan"]["limited_by"]) == (0, 1, "storage_bytes")
    assert found["plan"]["seconds"] > 0
    _, found, _ = spoken(
        capsys, "plan", device.url, "toy", "--budget", budget, "--storage", sizes[1], "--json"
    )
    assert found["k"] == 2
    for text, message in (("[]", "no budget"), ("{", "no budget"), ('{"colour": 1}', "no field 'colour'")):
        budget.write_text(text)
        code, _, err = spoken(capsys, "plan", device.url, "toy", "--budget", budget)
        assert code == 2
        assert message in err
    assert spoken(capsys, "plan", device.url, "toy", "--budget", tmp_path / "none")[0] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"have_k": null, "storage_bytes": null}', ""),
        ('{"flops": 1e-320, "seconds": 1}', "flops is 1e-320: give a number from 0.001"),
        ('{"flops": Infinity}', "flops is inf"),
        ('{"watts": NaN}', "watts is nan"),
        ('{"memory_bytes": 1e999}', "memory_bytes is inf"),
        ('{"epochs": ' + "9" * 4290 + "}", "…: give a number from 1 to 1e+09"),
        ('{"epochs": ' + "9" * 5000 + "}", "is no budget (Exceeds the limit"),
        ('{"have_k": ' + "[" * 100_000, "is no budget"),
    ],
)
def test_a_budget_file_of_odd_numbers_is_refused_in_words(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    budget = tmp_path / "budget.json"
    budget.write_text(text)
    code, found, err = spoken(
        capsys, "plan", "--manifest", files.manifest_of(file), "--budget", budget, "--json"
    )
    assert (code, found.get("k")) == ((2, None) if message else (0, 5))
    assert message in err
    assert len(err) < 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "http://127.0.0.1:9", "x", "--timeout", "1e300"), "timeout_s is 1e+300"),
        (("plan", "http://127.0.0.1:9", "x", "--memory", "1e308G"), "memory_bytes is inf"),
        (("profile", "--seconds", "1e300"), "seconds is 1e+300"),
    ],
)
def test_options_are_bounded(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = spoken(capsys, *arguments)
    assert code == 2
    assert message in err


def test_a_profile_is_a_budget(device: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, _ = spoken(capsys, "profile", device.url, "toy", "--folder", tmp_path, "--seconds", "0.02")
    assert code == 0
    assert set(found) == {"memory_bytes", "storage_bytes", "bandwidth_bps", "flops"}
    budget = tmp_path / "budget.json"
    budget.write_text(json.dumps(found))
    code, done, _ = spoken(
        capsys, "fetch", device.url, "toy", "--to", tmp_path / "x", "--budget", budget, "--json"
    )
    assert (code, done["k"]) == (0, 5)
    code, found, _ = spoken(capsys, "profile", "--folder", tmp_path, "--seconds", "0.02")
    assert "bandwidth_bps" not in found
    assert spoken(capsys, "profile", device.url)[0] == 2


def test_a_rate_is_operations_over_the_median_time(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = iter([9.0, 1.0, 1.0, 5.0, 1.0, 1.0])  # the first warms up, the fourth was disturbed
    clock = [0.0]
    monkeypatch.setattr(profile, "perf_counter", lambda: clock[0])

    def work() -> None:
        clock[0] += next(durations)

    assert profile._rate(work, 3000, seconds=8.5) == 3000
    monkeypatch.undo()
    assert 1e7 < profile.measure_flops(0.02) < 1e14


def test_the_product_does_the_operations_that_are_counted() -> None:
    work, operations = profile._product(48)
    rows, columns = work().shape  # type: ignore[attr-defined]
    assert operations == 2 * rows * columns * 48


def test_free_memory_is_what_the_libraries_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9 kB\nMemAvailable:   5 kB\n")
    assert profile._available(meminfo) == 5 * 1024
    assert profile._available(tmp_path / "none") is None
    libraries = profile.library_bytes()
    assert 50e6 < libraries < 3e9  # torch is installed where tests run
    monkeypatch.setattr(profile, "library_bytes", lambda: libraries)
    monkeypatch.setattr(memory, "free_bytes", lambda: libraries + 70)
    assert profile.free_memory() == 70
    monkeypatch.setattr(memory, "free_bytes", lambda: libraries - 1)
    assert profile.free_memory() == 0
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 <= (profile.free_memory() or 0) <= total - libraries


@pytest.mark.parametrize(
    ("load", "bytes_"),
    [
        ("import no_such_module", 0),
        ("print(7)", 7 * 1024),
        ("import os; os.kill(os.getpid(), 9)", sys.maxsize),
    ],
)
def test_libraries_that_are_missing_take_nothing_and_such_as_do_not_fit_all(
    monkeypatch: pytest.MonkeyPatch, load: str, bytes_: int
) -> None:
    monkeypatch.setattr(profile, "_LOAD", load)
    assert profile.library_bytes() == bytes_


def test_bandwidth_is_counted_in_bits(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(profile, "perf_counter", lambda: next(ticks) / 10)
    # Of so small a set all five ranks are fetched, by one request; they come as one piece.
    assert profile.measure_bandwidth(device.url, "toy", ACCESS) == 8 * device.info.rank_bytes * 5 / 0.1
    assert len(device.ranges()) == 1


def test_the_functions_are_those_of_the_commands() -> None:
    assert {"fetch", "grow", "plan", "profile", "shrink", "status", "train", "verify"} <= set(api.__all__)
    assert api.Budget is Budget


def test_progress_without_a_terminal_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("mdc_device.cli.time.monotonic", lambda: now[0])
    report = cli._progress("epochs")
    for epoch in range(1, 101):
        now[0] += 1
        report(epoch, 100)
    assert capsys.readouterr().err.splitlines() == [f"{e} of 100 epochs ({e}%)" for e in (30, 60, 90)]
