"""A pool of networks that are trained on real data once, ahead of matching, and kept for further runs.

What is kept is named by all that determines the weights: the same data, network and training find them again, whatever
else a run is told. So a pool that was interrupted goes on with the next network.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mdc_core.compute.streams import stream
from mdc_core.config.settings import CondenseConfig
from mdc_core.data.real_set import RealSet
from mdc_core.errors import FormatError
from mdc_core.networks import Network, reset_parameters
from mdc_core.training.real_training import RealTraining

FORMAT = "mdc-pool/2"
"""Of the bytes of a network, and of what its weights are computed by; another one is never looked for."""
_DIGEST_BYTES = 32


class PoolStore(Protocol):
    """Where trained networks are kept: a cache, which may lose them, since they can be trained anew."""

    def get(self, key: str) -> bytes | None:
        """What was put there; None: nothing, or nothing any more. Keys are of 64 hexadecimal digits."""

    def put(self, key: str, data: bytes) -> None:
        """Keep the bytes, whole or not at all."""


class MemoryPools:
    """Keeps networks for as long as the process needs them."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        """See `PoolStore.get`."""
        return self._kept.get(key)

    def put(self, key: str, data: bytes) -> None:
        """See `PoolStore.put`."""
        self._kept[key] = data


@dataclass(frozen=True)
class Prepared:
    """A network of the pool that is there, trained now or before."""

    number: int
    """1-based."""
    total: int
    """Networks of the pool."""


class Pool:
    """The trained weights of its networks, each found or trained when it is asked for first.

    Args:
        like: a network of the pool's kind; its weights do not matter.
        training: gives the training to use, where one has to be trained.
    """

    def __init__(
        self,
        config: CondenseConfig,
        real: RealSet,
        like: Network,
        store: PoolStore,
        training: Callable[[], RealTraining],
    ) -> None:
        self._config, self._real, self._store, self._training = config, real, store, training
        self._shapes = {name: parameter.shape for name, parameter in like.named_parameters()}
        self._trained: dict[int, list[Tensor]] = {}

    def trained(self, number: int) -> list[Tensor]:
        """The weights of network `number`, 0-based, in the order of its parameters, on the device of the data."""
        if number not in self._trained:
            key = member_key(self._config, self._real, number)
            found = self._stored(key)
            if found is None:
                found = self._train(number)
                self._store.put(key, to_bytes(dict(zip(self._shapes, found, strict=True))))
            self._trained[number] = found
        return self._trained[number]

    def _stored(self, key: str) -> list[Tensor] | None:
        data = self._store.get(key)
        if data is None:
            return None
        try:
            weights = from_bytes(data, self._shapes)
        except FormatError as error:
            logging.getLogger(__name__).warning("%s: it is trained anew", error)
            return None
        return [weight.to(self._real.device) for weight in weights.values()]

    def _train(self, number: int) -> list[Tensor]:
        seed, training = self._config.seed, self._training()
        first_weights(self._config, training.net, number)
        training.begin(stream(seed, "pool order", number))
        with torch.enable_grad():
            training.see(self._config.pool_samples, stream(seed, "pool training", number))
        return [parameter.detach().clone() for parameter in training.net.parameters()]


def first_weights(config: CondenseConfig, net: Network, number: int) -> None:
    """Give `net` the weights of network `number` before its training; they follow from the seed."""
    reset_parameters(net, stream(config.seed, "pool weights", number))


def train_pool(
    config: CondenseConfig, real: RealSet, training: RealTraining, store: PoolStore
) -> Iterator[Prepared]:
    """Find or train every network of the pool, one after the other."""
    pool = Pool(config, real, training.net, store, lambda: training)
    for number in range(config.pool):
        pool.trained(number)
        yield Prepared(number + 1, config.pool)


def member_key(config: CondenseConfig, real: RealSet, number: int) -> str:
    """The name of a network's trained weights: a digest of all that determines them."""
    parts = {
        "format": FORMAT,
        "data": real.fingerprint(),
        "mean": real.mean,
        "std": real.std,
        "network": config.network.model_dump(),
        "seed": config.seed,
        "number": number,
        "samples": config.pool_samples,
        "batch": config.batch_network,
        "lr": config.lr_network,
        "augment": config.network_augment(),
        "cutmix": config.cutmix,
        "precision": config.precision,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def to_bytes(weights: dict[str, Tensor]) -> bytes:
    """Weights by the name of their parameter: safetensors behind its own sha256."""
    data = save({name: weight.cpu().contiguous() for name, weight in weights.items()})
    return hashlib.sha256(data).digest() + data


def from_bytes(data: bytes, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """What `to_bytes` was given, in the order of `shapes`; `FormatError` when damaged, or of another network."""
    digest, packed = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(packed).digest() != digest:
        raise FormatError("a stored network of the pool is damaged")
    try:
        weights = load(packed)
    except SafetensorError as error:
        raise FormatError(f"a stored network of the pool is damaged ({error})") from error
    if {name: weight.shape for name, weight in weights.items()} != shapes:
        raise FormatError("a stored network of the pool has other weights than this release's")
    return {name: weights[name] for name in shapes}
