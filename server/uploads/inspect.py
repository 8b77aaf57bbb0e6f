"""From an uploaded file to the facts that jobs are checked against."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mdc_core.config import DataFacts
from server.uploads.arrays import inspect_arrays
from server.uploads.images import inspect_images
from server.uploads.members import open_archive

Kind = Literal["zip", "npz"]


def inspect_upload(path: Path, name: str) -> tuple[Kind, DataFacts]:
    """Whether the file is an npz or a zip of images, and the facts of its data set, called `name`.

    Raises:
        DataError: it is neither, or cannot be used; the message names the member, array or class.
    """
    with open_archive(path) as archive:
        if any(member.endswith(".npy") for member in archive.namelist()):
            return "npz", inspect_arrays(archive, name)
        return "zip", inspect_images(archive, name)
