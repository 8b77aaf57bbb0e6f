"""A job's data are read at the side that the job was submitted with, by whichever attempt reads them."""

from __future__ import annotations

import pytest

from server.store import datasets, jobs, sets
from tests.server.archives import image, zipped
from tests.worker.conftest import Stores
from worker.data import load_job_data

UPLOADED = {"name": "pets", "channels": 3, "image_size": 12, "classes": ["cat", "dog"], "smallest_class": 2}


@pytest.mark.parametrize(
    ("facts", "side"),
    [({**UPLOADED, "image_size": 8}, 8), (UPLOADED, 12), (None, 12)],
    ids=["asked for", "by default", "of an earlier release"],
)
def test_the_side_is_the_jobs_own(stores: Stores, facts: dict[str, object] | None, side: int) -> None:
    names = [f"train/{label}/{number}.png" for label in ("cat", "dog") for number in range(3)]
    content = zipped({name: image(20, 30) for name in names})
    stores.objects.put("datasets/pets", content)
    with stores.database.begin() as session:
        row, _ = datasets.add(
            session,
            owner_id=stores.owner_id,
            name="pets",
            kind="zip",
            sha256="0" * 64,
            size=len(content),
            object_key="datasets/pets",
            facts=UPLOADED,
        )
        assert sets.claim_name(session, "pets", stores.owner_id)
        job = jobs.submit(
            session,
            owner_id=stores.owner_id,
            dataset=row.id,
            name="pets",
            condense={},
            evaluate={},
            facts=facts,
        )
    data = load_job_data(stores.job(job.id), stores.settings, stores.database, stores.objects)
    assert (data.train.image_size, len(data.train.images), len(data.test.images)) == (side, 4, 2)
