"""The real API in a process of its own, with one published set."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, sleep

from pydantic import SecretStr

from mdc_core.delivery import rankmajor
from mdc_core.delivery.signing import dump_private_keys, new_key
from server.access.tokens import create_key
from server.settings import Settings
from server.store import jobs, migrate, sets
from server.store.db import Database
from server.store.objects import open_objects
from tests.server.toyset import INFO, describe, pack

SECRET = "s" * 32


@dataclass(frozen=True)
class Live:
    """Where it is, a key that reads subsets, and the object of version 1 of the set `toy`."""

    url: str
    key: str
    obj: bytes

    def subset(self, k: int) -> bytes:
        return rankmajor.subset(self.obj, INFO, k)


@contextmanager
def live_api(folder: Path, **environment: str) -> Iterator[Live]:
    """The API over a data folder; `environment` adds settings, such as MDC_DOWNLOADS."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "MDC_DATA_DIR": str(folder),
        "MDC_OBJECTS_URL": f"file://{folder}/objects",
        "MDC_SECRET": SECRET,
        "MDC_SIGNING_KEYS": dump_private_keys([new_key()]),
        **environment,
    }
    key, obj = _published(
        Settings(data_dir=folder, objects_url=settings["MDC_OBJECTS_URL"], secret=SecretStr(SECRET))
    )
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "server", "--port", str(port)],
            env={**os.environ, **settings}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        live = Live(f"http://127.0.0.1:{port}", key, obj)
        _wait_for(live.url, process, folder / "api.log")
        yield live
    finally:
        process.terminate()
        process.wait(timeout=30)


def _published(settings: Settings) -> tuple[str, bytes]:
    """A key, and the object of the set that it published."""
    migrate.upgrade(settings.database_url)
    db, obj = Database(settings.database_url), pack(seed=1)
    object_key = f"sets/{rankmajor.sha256(obj)}"
    open_objects(settings.objects_url).put(object_key, obj)
    with db.begin() as session:
        owner, key = create_key(session, settings.secret_key(), name="device", scopes=["subsets:read"])
        assert sets.claim_name(session, "toy", owner.id)
        job = jobs.submit(session, owner_id=owner.id, dataset="digits", name="toy", condense={}, evaluate={})
        jobs.claim(session, job.id, "worker", 90)
        assert sets.publish(
            session,
            job.id,
            1,
            object_key=object_key,
            object_bytes=len(obj),
            master_key="masters/none",
            build_manifest=partial(describe, obj),
        )
    db.dispose()
    return key, obj


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = monotonic() + 60
    while monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            sleep(0.05)
    raise AssertionError(f"the API did not start: {log.read_text()}")
