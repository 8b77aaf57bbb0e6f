"""A folder for an attempt's temporary files. The next worker on the machine deletes it if its owner was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "mdc-attempt-"


@contextmanager
def scratch_folder() -> Iterator[str]:
    """A new folder, deleted at the end. Folders of workers that were killed are deleted first.

    The owner holds a `flock` on its folder. The kernel releases it however the owner dies, so a folder without a lock
    is abandoned.
    """
    _delete_abandoned()
    folder, handle = _locked_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _locked_folder() -> tuple[str, int]:
    while True:
        folder = tempfile.mkdtemp(prefix=PREFIX)
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another worker took it for abandoned before it was locked
        fcntl.flock(handle, fcntl.LOCK_EX)
        if Path(folder).exists():
            return folder, handle
        os.close(handle)


def _delete_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, locked by its owner, or deleted meanwhile
            handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
