"""A zip of many small images, over HTTP and through a job: how long it takes, and what it costs in memory.

    python -m benchmarks.upload_zip [photos.zip] > upload_zip.json

Without a zip one of 60 000 JPEG files of 32 × 32 pixels of noise is made. The API is started as in production, in the
embedded mode and a temporary folder; then the same bytes are uploaded again (they are known, but hashed); then a job of
a few small outer loops runs on them in a worker. Memory is the most that a process has held (VmHWM). Prints one JSON
object.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import tempfile
import time
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.installation import CONDENSE, EVALUATE, Installation
from benchmarks.machine import machine, memory_bytes


def main() -> None:
    """Measure, then print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zip", type=Path, nargs="?")
    given: Path | None = parser.parse_args().zip
    with tempfile.TemporaryDirectory(prefix="mdc-upload-") as folder, ExitStack() as cleanup:
        archive = given or _made(Path(folder) / "noise.zip")
        with zipfile.ZipFile(archive) as members:
            zipped = {"files": len(members.infolist()), "mb": round(archive.stat().st_size / 1e6, 1)}
        installation = Installation("small", Path(folder), cleanup, workers=0)
        api = installation.api.process.pid
        before = memory_bytes(api, "VmHWM") / 1e6
        authorization = {"Authorization": f"Bearer {installation.key}"}
        client = httpx.Client(base_url=installation.url, headers=authorization, timeout=600)
        uploads = [_upload(client, archive) for _ in range(2)]
        memory = {"api_before": round(before), "api_most": round(memory_bytes(api, "VmHWM") / 1e6)}
        installation.start_worker()
        job = _job(client, uploads[0]["id"])
    report = {
        "what": "upload of a zip over HTTP, then a job on it",
        "machine": machine(),
        "zip": zipped,
        "seconds": {
            "upload": uploads[0]["seconds"],
            "upload_again": uploads[1]["seconds"],
            "child_start_and_load": job["load"],
        },
        "mb": memory,
        "job": job["state"],
    }
    print(json.dumps(report, indent=1))


def _made(path: Path) -> Path:
    """Ten classes of noise."""
    drawn = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as members:
        for split, count in (("train", 5000), ("test", 1000)):
            for label, number in itertools.product(range(10), range(count)):
                file = io.BytesIO()
                Image.fromarray(drawn.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "JPEG")
                members.writestr(f"{split}/{label}/{number}.jpg", file.getvalue())
    return path


def _upload(client: httpx.Client, archive: Path) -> dict[str, Any]:
    begun = time.perf_counter()
    with archive.open("rb") as file:
        answer = client.post("/v1/datasets", content=file, headers={"Content-Type": "application/zip"})
    answer.raise_for_status()
    return {"id": answer.json()["id"], "seconds": round(time.perf_counter() - begun, 2)}


def _job(client: httpx.Client, dataset: str) -> dict[str, Any]:
    """Run a tiny job; how long its process needed until it had the data in memory."""
    body = {"dataset": dataset, "name": "zip", "condense": CONDENSE, "evaluate": EVALUATE}
    path = client.post("/v1/jobs", json=body).raise_for_status().headers["Location"]
    begun = loaded = 0.0
    while True:
        job = client.get(path).raise_for_status().json()
        now = time.perf_counter()
        if job["attempt"] and not begun:
            begun = now
        if not loaded and job["progress"]["phase"] not in ("queued", "loading"):
            loaded = now
        if job["ended_at"] is not None:
            return {"state": job["state"], "error": job["error"], "load": round(loaded - begun, 1)}
        time.sleep(0.1)


if __name__ == "__main__":
    main()
