"""Load a job's data set: a named one from the data root, or an upload from the object store."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mdc_core.config.presets import NAMED
from mdc_core.data.load import load, load_named
from mdc_core.data.real_set import DataSet
from mdc_core.errors import DataError
from server.settings import Settings
from server.store import datasets
from server.store.db import Database
from server.store.objects import ObjectStore
from server.store.tables import Job


def load_job_data(job: Job, settings: Settings, database: Database, objects: ObjectStore) -> DataSet:
    """The job's data in memory. No other part of the service decodes images.

    Raises:
        DataError: the data are missing or damaged. The message names the file or the class.
    """
    if job.dataset in NAMED:
        return load_named(job.dataset, settings.data_root, download=True)
    with database.read() as session:
        upload = datasets.get(session, job.dataset)
    if upload is None:
        raise DataError(f"the data set {job.dataset!r} was deleted: upload it again and submit the job again")
    with tempfile.TemporaryDirectory(prefix="mdc-data-") as folder:
        path = Path(folder) / f"{upload.name}.{upload.kind}"
        size = objects.head(upload.object_key)
        if size is None:
            raise DataError(f"the object store has lost the data set {job.dataset!r}: upload it again")
        with path.open("wb") as file:
            for piece in objects.stream(upload.object_key, 0, size):
                file.write(piece)
        facts = upload.facts if job.facts is None else job.facts
        return load(str(path), settings.data_root, image_size=facts["image_size"])
