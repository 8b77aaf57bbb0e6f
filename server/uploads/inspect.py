"""Inspect an upload: find the facts of its data set, against which jobs are checked.

The API does this in a child process, which runs this module. The directory of 60 000 members takes 50 MB, numpy and
Pillow take another 16 MB, and code that opens a user's archives should hold no secrets.
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
from mdc_core.system.parent import when_parent_ends
from server.uploads.members import open_archive

Kind = Literal["zip", "npz"]
CPU_SECONDS = 60
"""CPU time limit of an inspection. 60 000 images take three seconds."""
WALL_SECONDS = 180.0
MEMORY_BYTES = 2**30
"""Address space limit of an inspection."""
_MAX_OUTPUT = 16 * 2**20
_BAD = 3
"""Exit status for an unusable file. The output is the message."""


class Inspections:
    """Runs inspections in child processes with resource limits. They end with the API."""

    def __init__(self) -> None:
        """Start without processes."""
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def run(self, path: Path, name: str) -> tuple[Kind, DataFacts]:
        """`inspect_upload` in a child process.

        Raises:
            DataError: as `inspect_upload` does, and when it takes more than `CPU_SECONDS` or `MEMORY_BYTES`.
            RuntimeError: the process failed, or the API ends.
        """
        command = [sys.executable, "-m", "server.uploads.inspect", str(path), name]
        # The environment is stripped of secrets. The child ends when its standard input closes, that is, with the API.
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=_environment()) as child:
            self._running.add(child)
            try:
                if self._closed:
                    child.kill()
                output, errors = _output(child)
            finally:
                child.kill()
                self._running.discard(child)
        if child.returncode == _BAD:
            raise DataError(output.decode())
        if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL) and not self._closed:
            raise DataError(
                f"inspecting the upload takes more than {CPU_SECONDS} s or {MEMORY_BYTES // 2**20} MiB: send fewer "
                "or smaller files, and remove thumbnails and metadata"
            )
        if child.returncode != 0:
            last = errors.decode(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"the inspection of an upload ended with status {child.returncode}: {last}")
        kind, facts = json.loads(output)
        return kind, DataFacts.model_validate(facts)

    def close(self) -> None:
        """Kill the running inspections. Their uploads must be sent again."""
        self._closed = True
        for child in list(self._running):
            child.kill()


def inspect_apart(path: Path, name: str) -> tuple[Kind, DataFacts]:
    """`Inspections.run`, once."""
    return Inspections().run(path, name)


def _output(child: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """The child's standard output and error. It is killed after `WALL_SECONDS`."""
    assert child.stdout is not None
    assert child.stderr is not None
    timer = threading.Timer(WALL_SECONDS, child.kill)
    timer.start()
    errors: list[bytes] = []
    reader = threading.Thread(target=lambda: errors.append(child.stderr.read(_MAX_OUTPUT)))  # type: ignore[union-attr]
    reader.start()
    try:
        output = child.stdout.read(_MAX_OUTPUT)
        child.stdout.close()
        child.wait()
        reader.join()
    finally:
        timer.cancel()
    return output, b"".join(errors)


def inspect_upload(path: Path, name: str) -> tuple[Kind, DataFacts]:
    """The kind of the file (npz, or zip of images), and the facts of its data set, called `name`.

    Raises:
        DataError: it is neither, or unusable. The message names the member, array or class.
    """
    # Imported here: they load numpy and Pillow, which the API does without.
    from server.uploads.arrays import inspect_arrays
    from server.uploads.images import inspect_images

    with open_archive(path) as archive:
        if any(member.endswith(".npy") for member in archive.namelist()):
            return "npz", inspect_arrays(archive, name)
        return "zip", inspect_images(archive, name)


def _environment() -> dict[str, str]:
    """An allow-list of variables: credentials may have any name."""
    allowed = ("PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in allowed if name in os.environ} | {"OPENBLAS_NUM_THREADS": "1"}


def _limit() -> None:
    """Limit this process's resources, and end it with its parent."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    from PIL import PngImagePlugin

    # Text chunks of a PNG are of no use here, and can expand a thousandfold.
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**20
    when_parent_ends(lambda: os._exit(1))


def main() -> int:
    """Print kind and facts as JSON, or an error message."""
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
