"""The whole service in real processes, as a person starts it: `mdc up`, `mdc submit`, `mdc-device fetch`."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from mdc_device.decode import open_subset

pytestmark = pytest.mark.e2e
TOY = {
    "network": {"depth": 2, "width": 4},
    "outer_loops": 6,
    "inner_iterations": 1,
    "mls_period": 2,
    "n_data": 64,
}
JUDGE = {"epochs": 2, "repeats": 1}


@dataclass
class Running:
    """`mdc up` in a folder."""

    process: subprocess.Popen[str]
    url: str
    key: str

    def children(self) -> list[int]:
        return pids("--ppid", str(self.process.pid))

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`mdc ARGUMENTS` against this service."""
        environment = os.environ | {"MDC_URL": self.url, "MDC_KEY": self.key}
        command = [sys.executable, "-m", "mdc_cli.main", *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=180
        )

    def call(self, method: str, path: str, **request: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.request(method, self.url + path, headers=headers, timeout=30, **request)

    def job(self, job_id: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Poll until the job is as wanted."""
        pause = threading.Event()
        for _ in range(1200):
            job: dict[str, Any] = self.call("GET", f"/v1/jobs/{job_id}").json()
            if condition(job):
                return job
            pause.wait(0.1)
        raise AssertionError(job)


def pids(*selection: str) -> list[int]:
    listed = subprocess.run(
        ["ps", *selection, "-o", "pid=,stat="], capture_output=True, text=True, check=False
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, state in rows if not state.startswith("Z")]


def start(folder: Path) -> Running:
    command = [sys.executable, "-m", "mdc_cli.main", "up", "--data-dir", str(folder), "--port", "0"]
    environment = os.environ | {
        "MDC_THREADS": "1",
        "MDC_LEASE_SECONDS": "3",
        "MDC_LEASE_RENEW_SECONDS": "0.5",
    }
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith("Next"):
            url = next(word for word in said.split() if word.startswith("http"))
            return Running(process, url, (folder / "admin.key").read_text().strip())
    raise AssertionError(said)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def running(folder: Path) -> Iterator[Running]:
    service = start(folder)
    yield service
    service.process.terminate()
    service.process.communicate(timeout=120)
    assert service.process.returncode == 0


def photos() -> bytes:
    """A zip of two classes of 12-pixel PNGs."""
    drawn = np.random.default_rng(0)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        for label, level in (("dark", 60), ("light", 190)):
            for number in range(12):
                pixels = np.clip(drawn.normal(level, 30, (12, 12, 3)), 0, 255).astype(np.uint8)
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG")
                members.writestr(f"train/{label}/{number}.png", file.getvalue())
    return archive.getvalue()


def test_from_an_uploaded_zip_to_a_device(running: Running, tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(photos())
    settings = [f"--set={name}={json.dumps(value)}" for name, value in TOY.items()]
    judge = [f"--evaluate={name}={json.dumps(value)}" for name, value in JUDGE.items()]
    told = running.command("submit", str(tmp_path / "photos.zip"), "--ipc", "1", "--dry-run", "--json")
    assert told.returncode == 0, told.stderr
    plan = json.loads(told.stdout)
    assert (plan["facts"]["images"], plan["facts"]["test_images"], plan["facts"]["own_side"]) == (22, 2, 12)
    assert running.call("GET", "/v1/jobs").json()["data"] == []
    submitted = running.command(
        "submit",
        str(tmp_path / "photos.zip"),
        "--ipc",
        "3",
        "--name",
        "photos",
        *settings,
        *judge,
        "--watch",
        "--json",
    )
    assert submitted.returncode == 0, submitted.stderr
    assert (
        "photos: 2 classes, 22 training images and 2 test images (held out, as there is no test split), 12 pixels, "
        "colour. Method mdc, preset digits, convnet-d2-w4, ipc 3: "
    ) in submitted.stderr
    job = json.loads(submitted.stdout)
    assert job["facts"] == plan["facts"]
    assert job["set"]["name"] == "photos"
    assert (
        job["condense"]["network"]
        == job["evaluate"]["network"]
        == {"name": "convnet", "depth": 2, "width": 4}
    )
    listed = running.command("sets", "--json")
    assert [one["name"] for one in json.loads(listed.stdout)] == ["photos"]
    assert running.call("GET", "/v1/sets/photos/preview.png").content.startswith(b"\x89PNG")

    key = running.call("POST", "/v1/keys", json={"name": "device", "scopes": ["subsets:read"]}).json()["key"]
    target = tmp_path / "device" / "photos.safetensors"
    target.parent.mkdir()
    budget = ["--k", "2", "--storage", "100k"]
    fetched = subprocess.run(
        [
            sys.executable,
            "-m",
            "mdc_device",
            "fetch",
            running.url,
            "photos",
            *budget,
            "--to",
            str(target),
            "--json",
        ],
        env=os.environ | {"MDC_KEY": key},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert fetched.returncode == 0, fetched.stderr
    assert json.loads(fetched.stdout)["verified"] is True
    subset = open_subset(target)
    assert subset.tiles.shape == (2, 2, 1, 3, 12, 12)
    assert subset.images().shape == (4, 3, 12, 12)
    assert subset.labels().tolist() == [0, 1, 0, 1]
    # That key reads subsets and nothing else.
    forbidden = httpx.get(f"{running.url}/v1/jobs", headers={"Authorization": f"Bearer {key}"})
    assert forbidden.status_code == 403


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_however_it_ends_nothing_is_left_running_and_the_job_goes_on_at_the_next_start(
    folder: Path, number: signal.Signals
) -> None:
    first = start(folder)
    body = {"dataset": "digits", "condense": TOY | {"ipc": 2, "outer_loops": 60}, "evaluate": JUDGE}
    job_id = first.call("POST", "/v1/jobs", json=body).json()["id"]
    first.job(job_id, lambda job: job["progress"]["phase"] == "condensing" and job["progress"]["step"] >= 2)
    processes = [first.process.pid, *first.children()]
    assert len(processes) == 3
    processes += [child for parent in first.children() for child in pids("--ppid", str(parent))]
    assert len(processes) >= 4, "the attempt's own process"
    first.process.send_signal(number)
    first.process.communicate(timeout=120)
    assert first.process.returncode == (0 if number is signal.SIGINT else -number)
    pause = threading.Event()
    for _ in range(600):  # after SIGKILL they notice it by themselves
        if not pids("--pid", ",".join(map(str, processes))):
            break
        pause.wait(0.1)
    assert not pids("--pid", ",".join(map(str, processes)))

    second = start(folder)
    try:
        job = second.job(job_id, lambda job: job["ended_at"] is not None)
        assert (job["state"], job["attempt"]) == ("succeeded", 2), job
    finally:
        second.process.terminate()
        second.process.communicate(timeout=120)


def test_a_killed_worker_takes_its_attempt_along_and_another_goes_on(folder: Path) -> None:
    first = start(folder)
    body = {"dataset": "digits", "condense": TOY | {"ipc": 2, "outer_loops": 60}, "evaluate": JUDGE}
    job_id = first.call("POST", "/v1/jobs", json=body).json()["id"]
    first.job(job_id, lambda job: job["progress"]["phase"] == "condensing" and job["progress"]["step"] >= 2)
    (worker,) = [child for child in first.children() if pids("--ppid", str(child))]
    attempts = pids("--ppid", str(worker))
    os.kill(worker, signal.SIGKILL)
    _, said = first.process.communicate(timeout=120)
    assert first.process.returncode == 1
    assert "a process ended with status -9" in said
    assert not pids("--pid", ",".join(map(str, attempts)))

    second = start(folder)
    try:
        job = second.job(job_id, lambda job: job["ended_at"] is not None)
        assert (job["state"], job["attempt"]) == ("succeeded", 2), job
    finally:
        second.process.terminate()
        second.process.communicate(timeout=120)


def test_a_taken_port_is_named(running: Running, tmp_path: Path) -> None:
    port = running.url.rsplit(":", 1)[1]
    command = [
        sys.executable,
        "-m",
        "mdc_cli.main",
        "up",
        "--data-dir",
        str(tmp_path / "other"),
        "--port",
        port,
    ]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", "digits", "--ipc", "0"], "condense.ipc: Input should be greater than or equal to 1"),
        (["submit", "digits", "--ipc", "1000"], "= 1000 of each class, but 'digits' has a class with 139"),
        (["submit", "digits", "--set", "factor=9"], "condense.factor"),
        (["submit", "digits", "--evaluate", "sizes=[99]"], "k is 99, but the set has 10 images per class"),
        (["submit", "digits", "--name", "No Spaces"], "name"),
        (["submit", "atlantis"], "there is no data set or file 'atlantis': use digits"),
        (["watch", "job_none"], "job_none"),
        (["cancel", "job_none"], "job_none"),
        (["sets", "nothing"], "condensed set 'nothing'"),
        (["jobs", "--key", "mdc_wrong_key"], "key"),
        (["jobs", "--url", "http://127.0.0.1:9"], "cannot reach http://127.0.0.1:9"),
        (["jobs", "--state", "lost"], "state"),
    ],
)
def test_wrong_requests_are_one_clear_line(running_once: Running, arguments: list[str], message: str) -> None:
    refused = running_once.command(*arguments)
    assert refused.returncode == 1, refused.stderr
    assert refused.stderr.startswith("Error:")
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.fixture(scope="module")
def running_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    service = start(tmp_path_factory.mktemp("once") / "data")
    yield service
    service.process.terminate()
    service.process.communicate(timeout=120)
