"""The whole workflow on this machine: a job over HTTP, a worker that condenses, a device that fetches what fits.

    python -m demo

It starts the service in a temporary folder and condenses scikit-learn's digits twice: by the paper's method and by
feature matching. A separate device process then fetches the subset of the latter that fits a small storage budget,
verifies it and trains on it. The results are demo/report.json and demo/preview.png. No process outlives the demo, even
after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from mdc_cli.client import Service
from mdc_cli.output import accuracy, people, table
from mdc_cli.remote import follow_job

HERE = Path(__file__).parent
TRAINER = HERE.parent / "examples" / "train_on_device.py"
EVALUATE = {"sizes": [1, 2, 3, 5, 10], "repeats": 4, "epochs": 150, "epoch_shares": []}
JOBS = {
    # Shorter than the preset, but the MLS is still selected six times.
    "MDC": {
        "dataset": "digits",
        "name": "demo-mdc",
        "condense": {"method": "idc", "ipc": 10, "outer_loops": 24, "inner_iterations": 8, "mls_period": 4},
        "evaluate": {**EVALUATE, "random_baseline": False},  # the same as the other job's
    },
    "feature matching": {
        "dataset": "digits",
        "name": "demo",
        "condense": {"method": "feature", "ipc": 10},
        "evaluate": EVALUATE,
    },
}
STORAGE = "6200"
"""The device's storage budget in bytes: enough for three of the ten images per class."""
TRAINING_SECONDS = 4


def main() -> None:
    """Run the demo, print the table, write the report."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mdc-demo-") as folder, _service(Path(folder)) as service:
        jobs = {method: service.call("POST", "/v1/jobs", json=body) for method, body in JOBS.items()}
        manifests = []
        for method, job in jobs.items():
            people.print(f"1  Job {job['id']} submitted over HTTP; a worker condenses digits by {method}:")
            published = follow_job(service, job["id"])["set"]
            manifests.append(service.call("GET", f"{published['url']}/manifest"))
        (HERE / "preview.png").write_bytes(service.fetch(f"{published['url']}/preview.png"))
        people.print(
            f"2  Set {published['name']}@{published['version']} published. A device with {STORAGE} bytes to spare:"
        )
        device = _device(service, published["name"], Path(folder) / "device.safetensors")
    report = {**_report(manifests, device), "seconds": round(time.monotonic() - begun, 1)}
    (HERE / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    _print(report)


@contextmanager
def _service(folder: Path) -> Iterator[Service]:
    """Run `mdc up` in its own folder; it is always stopped at the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    workers = min(len(JOBS), os.cpu_count() or 1)
    command = [sys.executable, "-m", "mdc_cli.main", "up", "--data-dir", str(folder), "--port", str(port)]
    command += ["--workers", str(workers)]
    people.print(f"0  Starting the API and {workers} worker{'s' * (workers > 1)} on this machine")
    up = subprocess.Popen(
        command,
        env=os.environ | {"MDC_THREADS": "1"},  # images this small do not benefit from more
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert up.stderr is not None
        said = []
        for line in up.stderr:
            said.append(line)
            if line.startswith("Next"):
                break
        else:
            raise SystemExit("mdc up failed:\n" + "".join(said))
        yield Service(f"http://127.0.0.1:{port}", (folder / "admin.key").read_text().strip())
    finally:
        # A second Ctrl-C must not leave processes behind: wait until they have stopped.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        up.terminate()
        up.wait()


def _device(service: Service, name: str, target: Path) -> dict[str, Any]:
    """Run the device in separate processes, with a key that can only read subsets."""
    key = service.call("POST", "/v1/keys", json={"name": "demo device", "scopes": ["subsets:read"]})["key"]
    environment = os.environ | {"MDC_KEY": key, "OMP_NUM_THREADS": "1"}
    fetch = ["-m", "mdc_device", "fetch", service.url, name, "--k", "auto", "--storage", STORAGE]
    fetched = _run([*fetch, "--to", str(target), "--json"], environment)
    people.print(
        f"   fetched subset {fetched['k']}, {fetched['total_bytes']} bytes, sha256 verified; training on it"
    )
    seconds = ["--seconds", str(TRAINING_SECONDS)]
    trained = _run([str(TRAINER), str(target), *seconds, "--test", "digits", "--json"], environment)
    return {
        "k": fetched["k"],
        "bytes": fetched["total_bytes"],
        "verified": fetched["verified"],
        "sha256": fetched["sha256"],
        "limited_by": fetched["plan"]["limited_by"],
        "accuracy": trained["accuracy"],
    }


def _run(arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a Python process and parse the JSON that it prints; its failure ends the demo."""
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, check=False, text=True
    )
    if done.returncode:
        raise SystemExit(f"the device failed with status {done.returncode}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _report(manifests: list[dict[str, Any]], device: dict[str, Any]) -> dict[str, Any]:
    """The report: rows of both sets, the paper's method (`mdc`) and the one that devices get (`default`)."""
    mdc, default = manifests
    rows = [
        {
            "k": row["k"],
            "bytes": default["header_bytes"] + row["k"] * default["rank_bytes"],
            "mdc": row["mdc_mean"],
            "mdc_std": row["mdc_std"],
            "default": ours["mdc_mean"],
            "default_std": ours["mdc_std"],
            "random": ours["random_mean"],
            "random_std": ours["random_std"],
        }
        for row, ours in zip(mdc["accuracy"], default["accuracy"], strict=True)
    ]
    return {"set": default["name"], "rows": rows, "device": device}


def _print(report: dict[str, Any]) -> None:
    device = report["device"]
    people.print(
        f"3  The device holds subset {device['k']} and recognises {100 * device['accuracy']:.1f} % "
        f"of the test images after {TRAINING_SECONDS} s of training."
    )
    cells = [
        [
            str(row["k"]),
            str(row["bytes"]),
            *(accuracy(row[name], row[f"{name}_std"]) for name in ("mdc", "default", "random")),
        ]
        for row in report["rows"]
    ]
    table(
        "Test accuracy on digits, mean ± std of 4 networks",
        ["k", "bytes", "MDC", "feature matching", "random-k real images"],
        cells,
    )
    people.print(f"{report['seconds']} s. Wrote demo/report.json and demo/preview.png.")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(130)


if __name__ == "__main__":
    main()
