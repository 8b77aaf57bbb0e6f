"""Behind a hostile proxy a client ends with the right bytes or a clear error, never with a wrong file."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mdc_core.delivery import rankmajor
from mdc_device import api, backoff, files
from mdc_device.cli import main
from mdc_device.decode import open_subset
from mdc_device.errors import UnreachableError


def neighbour(name: str) -> ModuleType:
    """A module of this folder."""
    spec = importlib.util.spec_from_file_location(f"device_{name}", Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


hostile, served = neighbour("hostile"), neighbour("conftest")
PATIENCE = ("--timeout", "0.3", "--retries", "2")
ACCESS = api.Access("mdc_1_secret", timeout_s=0.3, retries=2)

# What a single bad answer does: 0, the client gets over it; 5, it stops with an error and changes nothing.
OVERCOME = {
    "truncate",
    "truncate_cleanly",
    "stall",
    "drop",
    "ignore_range",
    "mix_versions",
    "mix_in_the_middle",
    "shift",
    "flip",
    "fail",
    "throttle",
}


@pytest.fixture(scope="module")
def behind() -> Iterator[tuple[Any, Any]]:
    """Version 2 of the set behind the proxy, which can get at version 1 too."""
    new, old = served.served_set(version=2, seed=2), served.served_set(version=1, seed=1)
    with served.serving(new), served.serving(old), hostile.proxying(new.url, old.url) as proxy:
        yield proxy, new


@pytest.fixture
def start(behind: tuple[Any, Any], tmp_path: Path) -> tuple[Any, Any, Path]:
    """Subset 2 of version 2, fetched while the proxy was honest."""
    proxy, device = behind
    proxy.moods, proxy.manifest_moods = [], []
    device.requests.clear()
    file = tmp_path / "toy.mdc"
    api.fetch(proxy.url, "toy", file, k=2, access=ACCESS)
    return proxy, device, file


def commands(proxy: Any, file: Path, k: int) -> dict[str, list[str]]:
    return {
        "fetch": ["fetch", proxy.url, "toy", "--to", str(file), "--k", str(k), *PATIENCE],
        "grow": ["grow", str(file), "--k", str(k), *PATIENCE],
    }


@pytest.mark.parametrize("command", ["fetch", "grow"])
@pytest.mark.parametrize("mood", hostile.MOODS, ids=lambda mood: mood.__name__)
def test_one_bad_answer(
    start: tuple[Any, Any, Path], capsys: pytest.CaptureFixture[str], mood: Any, command: str
) -> None:
    proxy, device, file = start
    proxy.moods = [mood]
    code = main(commands(proxy, file, 4)[command])
    err = capsys.readouterr().err
    if mood.__name__ in OVERCOME:
        assert (code, err) == (0, "")
        assert file.read_bytes() == device.subset(4)
        return
    assert code == 5
    assert err.startswith("mdc-device: ")
    assert open_subset(file).k == 2
    assert file.read_bytes()[: len(device.subset(2))] == device.subset(2)
    assert main(commands(proxy, file, 4)[command]) == 0
    assert file.read_bytes() == device.subset(4)


@pytest.mark.parametrize("mood", hostile.MOODS, ids=lambda mood: mood.__name__)
def test_a_bad_answer_for_the_manifest(
    start: tuple[Any, Any, Path], capsys: pytest.CaptureFixture[str], mood: Any
) -> None:
    proxy, device, file = start
    proxy.manifest_moods = [mood]
    code = main(commands(proxy, file, 4)["grow"])
    err = capsys.readouterr().err
    if code == 0:
        assert mood.__name__ in {
            "truncate",
            "stall",
            "drop",
            "ignore_range",
            "fail",
            "throttle",
            "wrong_place",
        }
        assert file.read_bytes() == device.subset(4)
        return
    assert code == 5
    assert err.startswith("mdc-device: ")
    assert file.read_bytes() == device.subset(2)
    assert api.status(file).version == 2


@pytest.mark.parametrize("seed", range(40))
def test_any_series_of_bad_answers(start: tuple[Any, Any, Path], seed: int) -> None:
    proxy, device, file = start
    draw = random.Random(seed)
    quick = [mood for mood in hostile.MOODS if mood is not hostile.stall]
    held = 2
    for _ in range(6):
        k = draw.randint(1, 5)
        proxy.moods = draw.choices([hostile.honest, *quick], k=draw.randint(0, 6))
        kind = draw.choice(["fetch", "grow"]) if k >= held else "fetch"
        code = main(commands(proxy, file, k)[kind])
        assert code in (0, 3, 4, 5)
        held = k if code == 0 else held
        assert open_subset(file).k == held
        size = rankmajor.subset_size(device.info, held)
        assert file.read_bytes()[:size] == device.subset(held)
        if code == 0 or kind == "fetch":
            assert json.loads(files.manifest_of(file).read_bytes()) == device.manifest
    proxy.moods = []
    assert main(commands(proxy, file, 5)["grow"]) == 0
    assert file.read_bytes() == device.subset(5)
    assert api.status(file).verified


def silence(answer: Any) -> Any:
    """Head, but no body, and the connection stays open."""
    answer.send, answer.stall = 0, True
    return answer


@pytest.mark.parametrize(
    ("mood", "code", "message"),
    [
        (hostile.fail, 3, "the server failed: .*503.*run the same command again"),
        (hostile.drop, 3, "no complete response"),
        (silence, 3, "no complete response"),
        (hostile.throttle, 4, "429"),
        (hostile.flip, 5, "rank 4 .*arrived damaged twice"),
        (hostile.mix_versions, 5, "rank 3, 4 .*arrived damaged twice"),
    ],
)
def test_lasting_trouble_is_an_error_in_the_end(
    start: tuple[Any, Any, Path], capsys: pytest.CaptureFixture[str], mood: Any, code: int, message: str
) -> None:
    proxy, device, file = start
    proxy.moods = [mood] * 100
    assert main(commands(proxy, file, 4)["grow"]) == code
    assert re.search(message, capsys.readouterr().err)
    assert open_subset(file).k == 2
    assert file.read_bytes()[: len(device.subset(2))] == device.subset(2)


def test_waits_grow_with_jitter_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(backoff, "FIRST_S", 0.5)
    for _ in range(200):
        series = backoff.Backoff(retries=9)
        for _ in range(9):
            series.wait_or_raise(UnreachableError("gone"))
        with pytest.raises(UnreachableError):
            series.wait_or_raise(UnreachableError("gone"))
    for n in range(9):
        least, most = min(waits[n::9]), max(waits[n::9])
        bound = min(30.0, 0.5 * 2**n)
        assert 0 <= least < 0.2 * bound
        assert 0.8 * bound < most <= bound


def test_progress_and_the_servers_wish_count(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    series = backoff.Backoff(retries=1)
    for _ in range(20):
        series.wait_or_raise(UnreachableError("gone"), progressed=True)
    waits.clear()
    series = backoff.Backoff(retries=1)
    series.wait_or_raise(UnreachableError("busy", retry_after=7))
    assert waits == [7]
    with pytest.raises(UnreachableError):
        backoff.Backoff(retries=9).wait_or_raise(UnreachableError("busy", retry_after=3600))
    assert waits == [7]
