"""From an uploaded file to the facts that jobs are checked against.

The API lets a process of its own look into a file: the directory of 60 000 members takes 50 MB, numpy and Pillow take
another 16, and what opens a user's archives should hold no secrets. That process is this module, run as a program.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Literal

from mdc_core.config.settings import DataFacts
from mdc_core.errors import DataError
from mdc_core.parent import when_parent_ends
from server.uploads.members import open_archive

Kind = Literal["zip", "npz"]
CPU_SECONDS = 60
"""Processor time of an inspection; 60 000 images take three."""
WALL_SECONDS = 180.0
MEMORY_BYTES = 2**30
"""Address space of an inspection."""
_MOST_TOLD = 16 * 2**20
_BAD = 3
"""Status of the process when the file cannot be used; its output is the message."""


class Inspections:
    """Processes that look into uploads, each with limits, and none when the API ends."""

    def __init__(self) -> None:
        """None runs."""
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def run(self, path: Path, name: str) -> tuple[Kind, DataFacts]:
        """`inspect_upload` in a process of its own.

        Raises:
            DataError: as `inspect_upload` does, and when it takes more than `CPU_SECONDS` or `MEMORY_BYTES`.
            RuntimeError: the process failed, or the API ends.
        """
        command = [sys.executable, "-m", "server.uploads.inspect", str(path), name]
        # Without the secrets of the environment. It ends when its standard input does: with the API.
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=_environment()) as child:
            self._running.add(child)
            try:
                if self._closed:
                    child.kill()
                told, failed = _output(child)
            finally:
                child.kill()
                self._running.discard(child)
        if child.returncode == _BAD:
            raise DataError(told.decode())
        if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL) and not self._closed:
            raise DataError(
                f"to look into the upload takes more than {CPU_SECONDS} s or {MEMORY_BYTES // 2**20} MiB: send fewer "
                "or smaller files, without thumbnails and notes"
            )
        if child.returncode != 0:
            last = failed.decode(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"the inspection of an upload ended with status {child.returncode}: {last}")
        kind, facts = json.loads(told)
        return kind, DataFacts.model_validate(facts)

    def close(self) -> None:
        """End those that run; what they looked into has to be sent again."""
        self._closed = True
        for child in list(self._running):
            child.kill()


def inspect_apart(path: Path, name: str) -> tuple[Kind, DataFacts]:
    """`Inspections.run`, of one."""
    return Inspections().run(path, name)


def _output(child: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """What the process prints; it is killed when it takes too long."""
    assert child.stdout is not None
    assert child.stderr is not None
    timer = threading.Timer(WALL_SECONDS, child.kill)
    timer.start()
    errors: list[bytes] = []
    reader = threading.Thread(target=lambda: errors.append(child.stderr.read(_MOST_TOLD)))  # type: ignore[union-attr]
    reader.start()
    try:
        told = child.stdout.read(_MOST_TOLD)
        child.stdout.close()
        child.wait()
        reader.join()
    finally:
        timer.cancel()
    return told, b"".join(errors)


def inspect_upload(path: Path, name: str) -> tuple[Kind, DataFacts]:
    """Whether the file is an npz or a zip of images, and the facts of its data set, called `name`.

    Raises:
        DataError: it is neither, or cannot be used; the message names the member, array or class.
    """
    # Imported here: they bring numpy and Pillow, which the API does without.
    from server.uploads.arrays import inspect_arrays
    from server.uploads.images import inspect_images

    with open_archive(path) as archive:
        if any(member.endswith(".npy") for member in archive.namelist()):
            return "npz", inspect_arrays(archive, name)
        return "zip", inspect_images(archive, name)


def _environment() -> dict[str, str]:
    """What Python needs, and no credentials, whatever they are called."""
    kept = ("PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"OPENBLAS_NUM_THREADS": "1"}


def _limit() -> None:
    """Bound this process, and end it with its parent."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    from PIL import PngImagePlugin

    # Notes in a PNG are of no use here, and may be made to expand a thousand times.
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**20
    when_parent_ends(lambda: os._exit(1))


def main() -> int:
    """Print kind and facts as JSON, or what is wrong."""
    path, name = sys.argv[1:]
    _limit()
    try:
        kind, facts = inspect_upload(Path(path), name)
    except MemoryError:
        os.kill(os.getpid(), signal.SIGKILL)
        raise
    except DataError as error:
        sys.stdout.buffer.write(str(error).encode(errors="replace"))
        return _BAD
    print(json.dumps([kind, facts.model_dump(mode="json")]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
