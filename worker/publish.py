"""Publish a condensed set: its two objects, its manifest, and the transaction that ends the job."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from safetensors.torch import save

from mdc_core.compute.streams import stream
from mdc_core.condensation.condense import CondenseState, result
from mdc_core.config.settings import CondenseConfig, EvaluateConfig, NetworkConfig
from mdc_core.data.real_set import DataSet
from mdc_core.delivery import rankmajor
from mdc_core.delivery.cost import Cost
from mdc_core.delivery.manifest import build_manifest
from mdc_core.delivery.verdict import advice, judged
from mdc_core.networks import build_network
from mdc_core.networks.cost import measure_cost
from mdc_core.training.evaluate import Trial, accuracy_rows, summarise
from server.store import sets
from server.store.db import Database
from server.store.holds import holding
from server.store.objects import ObjectStore
from server.store.tables import CondensedSet, Job


def publish(
    database: Database,
    objects: ObjectStore,
    job: Job,
    recipe: EvaluateConfig,
    data: DataSet,
    state: CondenseState,
    trials: Sequence[Trial],
) -> CondensedSet | None:
    """Store the set and end the job as succeeded. Returns None, and publishes nothing, if the job is no longer ours.

    Objects are named by their sha256 and written before the transaction. A crash between the two leaves an object
    without a reference, which the sweep deletes.
    """
    synthetic = result(state, data.train)
    info = synthetic.info(data.train)
    packed = rankmajor.pack(synthetic.quantised().cpu().numpy(), info)
    digests = rankmajor.digests(packed, info)
    object_key = f"sets/{digests.object}.safetensors"
    master = save({"tiles": synthetic.tiles.cpu().contiguous()}, {"format": "mdc-master/1"})
    master_key = f"masters/{hashlib.sha256(master).hexdigest()}.safetensors"
    config = CondenseConfig.model_validate(job.condense)
    accuracy = accuracy_rows(summarise(trials), recipe)
    cost = {recipe.network.label(): network_cost(recipe.network, data)}

    def manifest(name: str, version: int) -> dict[str, Any]:
        return build_manifest(
            name=name,
            version=version,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            expires=None,
            info=info,
            digests=digests,
            object_url=f"/v1/sets/{name}@{version}/subsets/{info.ipc}",
            network=config.network.model_dump(),
            recipe=recipe.model_dump(mode="json"),
            accuracy=accuracy,
            cost=cost,
            data_sha256=state.data,
        )

    with holding(database, [object_key, master_key]) as hold:
        objects.put(object_key, packed)
        objects.put(master_key, master)
        with database.begin() as session:
            hold.give_up(session)
            return sets.publish(
                session,
                job.id,
                job.attempt,
                object_key=object_key,
                object_bytes=len(packed),
                master_key=master_key,
                build_manifest=manifest,
                advice=advice(judged(accuracy, info.ipc)),
            )


def network_cost(network: NetworkConfig, data: DataSet) -> Cost:
    """What training this network costs a device, per image."""
    net = build_network(
        network,
        channels=data.train.channels,
        image_size=data.train.image_size,
        classes=data.train.num_classes,
        generator=stream(0, "cost"),
    )
    return measure_cost(net, data.train.channels, data.train.image_size)
