"""Fetching over real HTTP: what arrives is byte-equal, whatever the connection does on the way."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from mdc_core.delivery import rankmajor
from mdc_core.delivery.local_key import local_key
from mdc_core.errors import ConfigError
from mdc_device import client, wire
from mdc_device.arguments import amount
from mdc_device.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON on stdout, the text on stderr."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


class Fetch:
    """`mdc-device fetch` of the served set to `file`, with --json."""

    def __init__(self, url: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.url, self.capsys = url, capsys
        self.file, self.part = folder / "toy.mdc", folder / "toy.mdc.part"

    def __call__(self, *options: object) -> tuple[int, dict[str, Any], str]:
        return run(self.capsys, "fetch", self.url, "toy", "--to", self.file, "--json", *options)


@pytest.fixture
def fetch(device: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Fetch:
    return Fetch(device.url, tmp_path, capsys)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_subset_arrives_with_its_manifest_and_nothing_else(device: Any, fetch: Fetch, k: int) -> None:
    code, done, err = fetch("--k", k)
    assert (code, err) == (0, "")
    assert fetch.file.read_bytes() == device.subset(k)
    assert sorted(path.name for path in fetch.file.parent.iterdir()) == [
        "toy.mdc",
        "toy.mdc.manifest.json",
        "toy.mdc.state.json",
    ]
    assert json.loads(Path(done["manifest_path"]).read_bytes()) == device.manifest
    assert done["k"] == k
    assert done["verified"] is True
    assert done["sha256"] == rankmajor.sha256(device.subset(k))
    assert done["received_bytes"] == done["total_bytes"] == len(device.subset(k))
    assert device.ranges() == [None]


def test_auto_is_what_the_budget_affords(device: Any, fetch: Fetch) -> None:
    room = rankmajor.subset_size(device.info, 3)
    code, done, _ = fetch("--storage", room)
    assert (code, done["k"], done["plan"]["limited_by"]) == (0, 3, "storage_bytes")
    assert fetch.file.read_bytes() == device.subset(3)
    code, done, _ = fetch("--k", "auto")
    assert done["k"] == 5
    code, done, _ = fetch("--k", 2, "--storage", room)
    assert done["k"] == 2
    assert fetch.file.read_bytes() == device.subset(2)


def test_the_same_again_fetches_nothing(device: Any, fetch: Fetch) -> None:
    fetch("--k", 2)
    code, done, _ = fetch("--k", 2)
    assert (code, done["received_bytes"], len(device.ranges())) == (0, 0, 1)
    fetch.file.write_bytes(b"something else")
    code, done, _ = fetch("--k", 2)
    assert (code, done["received_bytes"]) == (0, len(device.subset(2)))
    assert fetch.file.read_bytes() == device.subset(2)


@pytest.mark.parametrize("kept", [1, 4000, 4096, 4097, 4500])
def test_a_part_is_continued_by_a_closed_range(device: Any, fetch: Fetch, kept: int) -> None:
    whole = device.subset(4)
    fetch.part.write_bytes(whole[:kept])
    code, done, _ = fetch("--k", 4)
    assert (code, done["resumed_from"], done["received_bytes"]) == (0, kept, len(whole) - kept)
    assert fetch.file.read_bytes() == whole
    assert device.ranges() == [f"bytes={kept}-{len(whole) - 1}"]
    assert not fetch.part.exists()


def test_a_broken_connection_is_opened_again_where_it_broke(device: Any, fetch: Fetch) -> None:
    device.drop_after = [4200, 100]
    code, done, _ = fetch("--k", 4)
    assert code == 0
    assert done["received_bytes"] == len(device.subset(4))
    assert fetch.file.read_bytes() == device.subset(4)
    last = len(device.subset(4)) - 1
    assert device.ranges() == [None, f"bytes=4200-{last}", f"bytes=4300-{last}"]


def test_without_progress_it_gives_up_keeps_the_part_and_goes_on_next_time(device: Any, fetch: Fetch) -> None:
    device.drop_after = [4200, 0]
    code, _, err = fetch("--k", 4, "--retries", 1)
    assert code == 3
    assert "4200 of" in err
    assert "run the same command again" in err
    assert fetch.part.read_bytes() == device.subset(4)[:4200]
    assert not fetch.file.exists()
    code, done, _ = fetch("--k", 4)
    assert (code, done["resumed_from"]) == (0, 4200)
    assert fetch.file.read_bytes() == device.subset(4)


def test_a_server_that_ignores_ranges_sends_everything_anew(device: Any, fetch: Fetch) -> None:
    fetch.part.write_bytes(device.subset(4)[:4200])
    device.ignore_ranges = True
    code, done, _ = fetch("--k", 4)
    assert (code, done["received_bytes"]) == (0, len(device.subset(4)))
    assert fetch.file.read_bytes() == device.subset(4)


def test_a_server_that_ignores_ranges_and_breaks_off_is_not_asked_for_ever(device: Any, fetch: Fetch) -> None:
    device.ignore_ranges = True
    device.drop_after = [4200, 4100]
    code, _, _ = fetch("--k", 4, "--retries", 1)
    assert (code, len(device.ranges())) == (3, 2)
    assert fetch.part.read_bytes() == device.subset(4)[:4200]


def offset_of(device: Any, rank: int) -> int:
    return rankmajor.rank_range(device.info, rank)[0] + 7


def test_only_damaged_ranks_are_fetched_again(device: Any, fetch: Fetch) -> None:
    device.corrupt = {offset_of(device, rank): 1 for rank in (1, 3, 4)}
    code, done, _ = fetch("--k", 5)
    assert (code, done["repaired_ranks"]) == (0, [1, 3, 4])
    assert fetch.file.read_bytes() == device.subset(5)
    pairs = [(1, 1), (3, 4)]
    spans = [
        (rankmajor.rank_range(device.info, a)[0], rankmajor.rank_range(device.info, b)[1]) for a, b in pairs
    ]
    assert device.ranges() == [None, *[f"bytes={start}-{end - 1}" for start, end in spans]]
    assert done["received_bytes"] == len(device.subset(5)) + 3 * device.info.rank_bytes


def test_damage_that_comes_twice_is_an_error_and_no_file(device: Any, fetch: Fetch) -> None:
    device.corrupt = {offset_of(device, 2): 2}
    code, _, err = fetch("--k", 3)
    assert code == 5
    assert "rank 2 of subset 3" in err
    assert not fetch.file.exists()
    # The next run fetches that rank alone.
    code, done, _ = fetch("--k", 3)
    assert (code, done["received_bytes"], done["repaired_ranks"]) == (0, device.info.rank_bytes, [2])
    assert fetch.file.read_bytes() == device.subset(3)


def test_a_damaged_header_needs_no_request(device: Any, fetch: Fetch) -> None:
    device.corrupt = {100: 1}
    code, done, _ = fetch("--k", 3)
    assert (code, done["repaired_ranks"], len(device.ranges())) == (0, [], 1)
    assert fetch.file.read_bytes() == device.subset(3)


@pytest.mark.parametrize("other", [1, 2, 5])
def test_a_part_of_another_size_is_used(device: Any, fetch: Fetch, other: int) -> None:
    fetch.part.write_bytes(device.subset(other))
    code, done, _ = fetch("--k", 3)
    missing = max(3 - other, 0) * device.info.rank_bytes
    assert (code, done["received_bytes"]) == (0, missing)
    assert fetch.file.read_bytes() == device.subset(3)


def test_a_part_of_other_bytes_is_replaced(device: Any, fetch: Fetch) -> None:
    fetch.part.write_bytes(b"?" * 5000)
    code, _, _ = fetch("--k", 3)
    assert code == 0
    assert fetch.file.read_bytes() == device.subset(3)


def test_another_entity_tag_is_noticed(device: Any, fetch: Fetch) -> None:
    device.etag = "f" * 64
    code, _, err = fetch("--k", 3)
    assert code == 5
    assert "keeps old copies" in err
    device.etag = None
    device.obj = device.obj[:-1] + bytes([device.obj[-1] ^ 1])  # the manifest still describes the old one
    code, _, err = fetch("--k", 5)
    assert code == 5
    assert "keeps old copies" in err


def test_an_answer_with_another_range_is_refused(device: Any, fetch: Fetch) -> None:
    fetch.part.write_bytes(device.subset(3)[:4200])
    device.wrong_range = True
    code, _, err = fetch("--k", 3)
    assert code == 5
    assert "bytes 4201-" in err
    assert fetch.part.read_bytes() == device.subset(3)[:4200]


def test_a_manifest_that_contradicts_its_set_is_noticed(device: Any, fetch: Fetch) -> None:
    device.manifest["subset_sha256"][2] = "0" * 64
    device.etag = "0" * 64
    code, _, err = fetch("--k", 3)
    assert code == 5
    assert "not subset 3" in err
    assert not fetch.file.exists()


@pytest.mark.parametrize(
    ("status", "problem", "code", "message"),
    [
        (403, {"code": "scope", "detail": "this key may not read subsets"}, 4, "may not read subsets .*403"),
        (404, {"title": "no such set"}, 4, "no such set .*404"),
        (422, None, 4, "422"),
        (429, {"detail": "too many requests"}, 4, "too many requests"),
        (503, {"detail": "the database is down"}, 3, "the database is down .*503.*later"),
        (500, None, 3, "500"),
    ],
)
def test_refusals_say_what_the_server_said(
    device: Any, fetch: Fetch, status: int, problem: dict[str, Any] | None, code: int, message: str
) -> None:
    device.status, device.problem = status, problem
    found, _, err = fetch("--k", 1)
    assert found == code
    assert re.search(message, err)
    assert not fetch.part.exists()


def test_the_key_comes_from_the_option_or_the_environment(
    device: Any, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MDC_KEY")
    code, _, err = fetch("--k", 1)
    assert code == 4
    assert "this key is not known" in err
    assert "give an API key with --key, or set MDC_KEY" in err
    assert "authorization" not in device.requests[-1][1]
    assert fetch("--k", 1, "--key", "mdc_1_secret")[0] == 0
    code, _, err = fetch("--k", 1, "--key", "mdc\n1")
    assert code == 2
    assert "mdc" not in err.removeprefix("mdc-device")


def test_a_server_on_this_machine_gets_the_key_that_it_left_in_its_folder(
    device: Any, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MDC_KEY")
    monkeypatch.chdir(tmp_path)
    Path("mdc-data").mkdir()
    Path("mdc-data/admin.key").write_text("mdc_1_secret\n")
    assert fetch("--k", 1)[0] == 0
    assert main(["grow", str(fetch.file), "--k", "2"]) == 0  # the file tells the server
    assert local_key("https://condense.example") is None
    assert local_key("http://[::1") is None
    monkeypatch.setenv("MDC_DATA_DIR", "other")
    assert local_key(device.url) is None


def test_nobody_there(device: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        code, _, err = run(capsys, "fetch", url, "toy", "--to", tmp_path / "x")
    assert code == 3
    assert url in err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--k", "6"), 2, r"k is 6: give a whole number 1\.\.5"),
        (("--k", "0"), 2, r"k is 0"),
        (("--seconds", "5"), 2, "flops or bandwidth_bps"),
        (("--memory", "0.5"), 2, "memory_bytes is 0.5"),
        (("--min-accuracy", "90"), 2, "min_accuracy is 90"),
        (("--storage", "1k"), 6, "storage_bytes is 1000, but it needs"),
        (("--min-accuracy", "0.99"), 6, "none is measured above 0.75"),
        (("--to", "/no/such/folder/file"), 1, "/no/such/folder"),
    ],
)
def test_wrong_use_says_what_is_possible(
    device: Any, fetch: Fetch, options: tuple[str, ...], code: int, message: str
) -> None:
    found, _, err = fetch(*options)
    assert found == code
    assert re.search(message, err)
    assert device.ranges() == []


@pytest.mark.parametrize(
    "options", [("--k", "some"), ("--memory", "lots"), ("--frob",), ("--memory", "1..5M")]
)
def test_unknown_options_exit_with_2(fetch: Fetch, options: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        fetch(*options)
    assert caught.value.code == 2


def test_an_address_must_be_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "plan", "localhost:8000", "toy")
    assert code == 2
    assert "http://" in err
    assert run(capsys, "plan", "http://[::1", "toy")[0] == 2


def test_an_expired_or_damaged_manifest_is_refused(device: Any, fetch: Fetch) -> None:
    device.manifest["expires"] = "2020-01-01T00:00:00Z"
    code, _, err = fetch("--k", 1)
    assert code == 5
    assert "expired at 2020-01-01" in err
    device.manifest["expires"] = None
    device.manifest["rank_bytes"] = 1
    code, _, err = fetch("--k", 1)
    assert code == 5
    assert "rank_bytes is 1" in err


def test_interrupted_it_says_how_to_go_on_and_does(device: Any, fetch: Fetch) -> None:
    device.hold = threading.Event()
    command = [sys.executable, "-m", "mdc_device", "fetch", device.url, "toy", "--k", "5", "--to", fetch.file]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        assert device.held.wait(timeout=30)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    device.hold.set()
    device.hold = None
    assert process.returncode == 130
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert not fetch.file.exists()
    assert fetch("--k", 5)[0] == 0
    assert fetch.file.read_bytes() == device.subset(5)


def test_it_does_not_go_where_a_smaller_subset_is_better(
    device: Any, fetch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(1, 0.5, 0.4), (2, 0.7, 0.5), (4, 0.6, 0.8)]
    device.manifest["accuracy"] = [
        {"network": "net", "epochs": 3, "k": k, "mdc_mean": mean, "mdc_std": 0.0, "repeats": 2}
        | {"random_mean": random, "random_std": 0.0}
        for k, mean, random in rows
    ]
    passed = "k = 4-5 would fit, but is worse than a smaller subset"
    assert main(["plan", device.url, "toy"]) == 0
    assert passed in capsys.readouterr().out
    code, done, _ = run(capsys, "fetch", device.url, "toy", "--to", fetch.file, "--json")
    assert (code, done["k"], done["plan"]["verdict"]) == (0, 3, "better")
    assert done["plan"]["reason"] == passed
    assert main(["fetch", device.url, "toy", "--k", "4", "--to", str(fetch.file)]) == 0
    text = capsys.readouterr().out
    assert "subset 4 is worse than a smaller subset" in text
    assert passed not in text


def test_plan_shows_and_fetches_nothing(device: Any, capsys: pytest.CaptureFixture[str]) -> None:
    spending = ("--flops", "1G", "--seconds", "0.2", "--watts", "3", "--have", "1")
    code, found, _ = run(capsys, "plan", device.url, "toy", *spending, "--json")
    assert code == 0
    # 3 epochs of one step: 12 images a rank, of 1e6 operations and 10 kept bytes each, and 100 weights.
    seconds = 3 * (5 * 12 * (1e6 + 140 * 10) + 140 * 4 * 100) / 1e9
    assert (found["k"], found["limited_by"]) == (5, None)
    assert found["seconds"] == pytest.approx(seconds)
    assert found["joules"] == pytest.approx(3 * seconds)
    assert found["delta_bytes"] == 4 * device.info.rank_bytes
    assert main(["plan", device.url, "toy", "--flops", "1G", "--seconds", "0.1"]) == 0
    text = capsys.readouterr().out
    assert "subset 2 of 5; seconds allows no larger one" in text
    assert "unknown" in text
    assert device.ranges() == []


def test_fetch_speaks_to_people_too(device: Any, fetch: Fetch, capsys: pytest.CaptureFixture[str]) -> None:
    device.corrupt = {offset_of(device, 2): 1}
    assert main(["fetch", device.url, "toy", "--k", "2", "--to", str(fetch.file)]) == 0
    text = capsys.readouterr().out
    assert "subset 2 of 5" in text
    assert "repaired: rank 2" in text
    assert main(["verify", str(fetch.file)]) == 0
    assert "all digests match" in capsys.readouterr().out


def test_verify_names_the_damage(
    device: Any, fetch: Fetch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fetch("--k", 3)
    code, found, _ = run(capsys, "verify", fetch.file, "--json")
    assert (code, found["k"], found["verified"]) == (0, 3, True)
    data = bytearray(fetch.file.read_bytes())
    data[offset_of(device, 2)] ^= 1
    fetch.file.write_bytes(data)
    code, _, err = run(capsys, "verify", fetch.file)
    assert code == 5
    assert "rank 2" in err
    fetch.file.write_bytes(data[:-1])
    assert run(capsys, "verify", fetch.file)[0] == 5
    other = tmp_path / "other.json"
    other.write_text("{")
    assert run(capsys, "verify", fetch.file, "--manifest", other)[0] == 5
    assert run(capsys, "verify", tmp_path / "none")[0] == 1


def test_a_subset_of_another_set_is_not_this_one(
    device: Any, fetch: Fetch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fetch("--k", 1)
    info = dataclasses.replace(device.info, classes=("x", "y", "z"))
    tiles = rankmajor.read(device.obj)[1]
    foreign = tmp_path / "foreign"
    foreign.write_bytes(rankmajor.pack(tiles, info))
    manifest = fetch.file.with_name("toy.mdc.manifest.json")
    code, _, err = run(capsys, "verify", foreign, "--manifest", manifest)
    assert code == 5
    assert "does not belong to the set" in err


def test_every_piece_is_reported(device: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with client.Link.to(device.url, wire.Access("mdc_1_secret")) as link:
        published = client.fetch_manifest(link, "toy")
        client.fetch(link, published, 2, tmp_path / "x", lambda done, total: seen.append((done, total)))
    size = len(device.subset(2))
    assert seen[-1] == (size, size)
    assert sorted(seen) == seen


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64000", 64_000),
        ("64k", 64_000),
        ("64KB", 64_000),
        ("10MB", 10_000_000),
        ("1GiB", 2**30),
        ("1.5Mi", 1.5 * 2**20),
        ("2e9", 2e9),
        ("3 T", 3e12),
        ("0", 0),
        ("7B", 7),
    ],
)
def test_amounts(text: str, value: float) -> None:
    assert amount(text) == value


@pytest.mark.parametrize("text", ["", "k", "-5", "1.2.3", "5X", "1e999", "nan", "5kk"])
def test_no_amounts(text: str) -> None:
    with pytest.raises(ConfigError, match="give a number such as"):
        amount(text)
