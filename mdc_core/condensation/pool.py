"""A pool of networks, trained on real images once, ahead of matching, and stored for further runs.

The key of a stored network is a digest of all that determines its weights. So runs that agree in data, network and
training share networks, whatever their other settings. An interrupted pool continues with the next network.
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
"""Version of a stored network's bytes and of the computation of its weights; part of the key."""
_DIGEST_BYTES = 32


class PoolStore(Protocol):
    """Where trained networks are stored. A cache: it may lose them, as they can be trained again."""

    def get(self, key: str) -> bytes | None:
        """The bytes stored under a key of 64 hexadecimal digits; None: there are none (any more)."""

    def put(self, key: str, data: bytes) -> None:
        """Store the bytes, all or nothing."""


class MemoryPools:
    """A store in memory."""

    def __init__(self) -> None:
        self._stored: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        """See `PoolStore.get`."""
        return self._stored.get(key)

    def put(self, key: str, data: bytes) -> None:
        """See `PoolStore.put`."""
        self._stored[key] = data


@dataclass(frozen=True)
class Prepared:
    """A network of the pool that is ready, trained now or earlier."""

    number: int
    """1-based."""
    total: int
    """Networks of the pool."""


class Pool:
    """The trained weights of the pool's networks, each loaded or trained on first use.

    Args:
        like: any network of the pool's kind; its weights do not matter.
        training: called when a network has to be trained; returns what trains it.
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
        """The weights of network `number` (0-based), in the order of its parameters, on the device of the data."""
        if number not in self._trained:
            key = member_key(self._config, self._real, number)
            weights = self._load(key)
            if weights is None:
                weights = self._train(number)
                self._store.put(key, to_bytes(dict(zip(self._shapes, weights, strict=True))))
            self._trained[number] = weights
        return self._trained[number]

    def _load(self, key: str) -> list[Tensor] | None:
        data = self._store.get(key)
        if data is None:
            return None
        try:
            weights = from_bytes(data, self._shapes)
        except FormatError as error:
            logging.getLogger(__name__).warning("%s: training it again", error)
            return None
        return [weight.to(self._real.device) for weight in weights.values()]

    def _train(self, number: int) -> list[Tensor]:
        seed, training = self._config.seed, self._training()
        set_initial_weights(self._config, training.net, number)
        training.begin(stream(seed, "pool order", number))
        with torch.enable_grad():
            training.see(self._config.pool_samples, stream(seed, "pool training", number))
        return [parameter.detach().clone() for parameter in training.net.parameters()]


def set_initial_weights(config: CondenseConfig, net: Network, number: int) -> None:
    """Set `net` to the initial weights of network `number`, which follow from the seed."""
    reset_parameters(net, stream(config.seed, "pool weights", number))


def train_pool(
    config: CondenseConfig, real: RealSet, training: RealTraining, store: PoolStore
) -> Iterator[Prepared]:
    """Load or train every network of the pool, one after the other; yields after each."""
    pool = Pool(config, real, training.net, store, lambda: training)
    for number in range(config.pool):
        pool.trained(number)
        yield Prepared(number + 1, config.pool)


def member_key(config: CondenseConfig, real: RealSet, number: int) -> str:
    """The key of a network's trained weights: the sha256 of all that determines them, in hexadecimal."""
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
    """Weights by parameter name, as bytes: a sha256, then the safetensors file that it is of."""
    data = save({name: weight.cpu().contiguous() for name, weight in weights.items()})
    return hashlib.sha256(data).digest() + data


def from_bytes(data: bytes, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The weights in bytes of `to_bytes`, in the order of `shapes`.

    Raises:
        FormatError: the bytes are damaged, or of another network.
    """
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
