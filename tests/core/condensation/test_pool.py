"""A pool is trained once, goes on where it was interrupted, and trains anew what is damaged."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch

from mdc_core.compute.cuda_graph import Recorder
from mdc_core.condensation import pool as pool_module
from mdc_core.condensation.condense import condense, prepare
from mdc_core.condensation.interpolation import InterpolatedNetworks
from mdc_core.condensation.network_phase import initial_network
from mdc_core.condensation.pool import MemoryPools, Pool, member_key
from mdc_core.config.settings import CondenseConfig
from mdc_core.data.real_set import RealSet
from mdc_core.errors import ConfigError
from mdc_core.training.real_training import RealTraining
from tests.core.toys import FEATURE, toy_config, toy_real

CONFIG = toy_config(**FEATURE, outer_loops=2)


class Counting(MemoryPools):
    """Counts what is put, which is what was trained."""

    def __init__(self) -> None:
        super().__init__()
        self.puts = 0

    def put(self, key: str, data: bytes) -> None:
        self.puts += 1
        super().put(key, data)


def tiles(real: RealSet, pools: MemoryPools | None = None, config: CondenseConfig = CONFIG) -> torch.Tensor:
    *_, last = condense(config, real, pools=pools)
    return last.state.tiles


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "idc", "subset_loss": "mls"},
        {"subset_loss": "mls", "subset_metric": "accuracy", "accuracy_epochs": 1},
    ],
)
def test_a_pool_is_trained_once_for_all_runs(real: RealSet, changes: dict[str, object]) -> None:
    """Trained ahead, trained by the run, or loaded: the same networks, bit for bit."""
    config = CondenseConfig.model_validate(CONFIG.model_dump() | changes)
    pools = Counting()
    seen = [(member.number, member.total) for member in prepare(config, real, pools=pools)]
    assert seen == [(1, 2), (2, 2)]
    assert pools.puts == 2
    ahead = tiles(real, pools, config)
    assert torch.equal(ahead, tiles(real, None, config))
    other = config.model_copy(update={"ipc": 2, "outer_loops": 1})
    tiles(real, pools, other)
    assert pools.puts == 2


def test_training_goes_on_with_the_next_network(real: RealSet) -> None:
    pools = Counting()
    interrupted = prepare(CONFIG, real, pools=pools)
    next(interrupted)
    assert isinstance(interrupted, Generator)
    interrupted.close()
    assert pools.puts == 1
    assert len(list(prepare(CONFIG, real, pools=pools))) == 2
    assert pools.puts == 2
    assert torch.equal(tiles(real, pools), tiles(real))


@pytest.mark.parametrize("damage", ["short", "flipped", "empty", "other"])
def test_a_damaged_network_is_trained_anew(
    real: RealSet, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    pools = Counting()
    list(prepare(CONFIG, real, pools=pools))
    key = member_key(CONFIG, real, 1)
    data = pools.get(key)
    assert data is not None
    wide = CONFIG.model_copy(update={"network": CONFIG.network.model_copy(update={"width": 4})})
    list(prepare(wide, real, pools=pools))
    broken = {
        "short": data[:-1],
        "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        "empty": b"",
        "other": pools.get(member_key(wide, real, 1)),
    }[damage]
    assert broken is not None
    pools.put(key, broken)
    assert torch.equal(tiles(real, pools), tiles(real))
    assert pools.get(key) == data
    assert [message.partition(":")[2] for message in caplog.messages] == [" training it again"]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"network": {"depth": 1, "width": 8}},
        {"pool_samples": 25},
        {"batch_network": 7},
        {"lr_network": 0.02},
        {"augment": ("color",)},
        {"cutmix": 0.4},
        {"precision": "bf16"},
    ],
)
def test_what_determines_the_weights_names_them(real: RealSet, changes: dict[str, object]) -> None:
    other = toy_config(**FEATURE | changes)
    assert member_key(CONFIG, real, 0) != member_key(other, real, 0)


def test_names_follow_the_data_and_the_number_and_nothing_else(real: RealSet) -> None:
    keys = {
        member_key(CONFIG, real, 0),
        member_key(CONFIG, real, 1),
        member_key(CONFIG, toy_real(seed=1), 0),
        member_key(CONFIG, RealSet(real.images, real.labels, real.classes, (0.4,) * 3, real.std), 0),
    }
    assert len(keys) == 4
    assert all(len(key) == 64 for key in keys)
    for same in ({"ipc": 2}, {"calibration": 0.5}, {"pool": 7}, {"augment": ("color", "crop")}):
        assert member_key(CONFIG.model_copy(update=same), real, 0) == member_key(CONFIG, real, 0)


def test_networks_lie_between_initial_and_trained_weights(real: RealSet) -> None:
    """Every update has a network and a share of its own; the trained one is the pool's."""
    networks = InterpolatedNetworks(CONFIG, real, Recorder(real.device), MemoryPools())
    addresses = [parameter.data_ptr() for parameter in networks.net.parameters()]
    shares, members = [], set()
    for inner in range(1, 13):
        networks.ready(1, inner)
        trained = [parameter.clone() for parameter in networks.net.trained.parameters()]
        number = next(n for n in (0, 1) if all(map(torch.equal, trained, networks._pool.trained(n))))
        members.add(number)
        interpolated = [parameter.clone() for parameter in networks.net.interpolated.parameters()]
        initial = networks._initial[number]
        weight = max(range(len(initial)), key=lambda i: float((initial[i] - trained[i]).abs().max()))
        step = initial[weight] - trained[weight]
        share = float(((interpolated[weight] - trained[weight]) * step).sum() / step.square().sum())
        for a, b, c in zip(initial, trained, interpolated, strict=True):
            torch.testing.assert_close(c, share * a + (1 - share) * b, atol=1e-5, rtol=0)
        shares.append(share)
    assert members == {0, 1}
    assert 0 <= min(shares) < 0.3
    assert 0.7 < max(shares) <= 1
    assert addresses == [parameter.data_ptr() for parameter in networks.net.parameters()]


def test_no_training_is_set_up_where_all_networks_are_there(
    real: RealSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = MemoryPools()
    list(prepare(CONFIG, real, pools=pools))
    made: list[Any] = []
    monkeypatch.setattr("mdc_core.condensation.interpolation.RealTraining", lambda *args: made.append(args))
    tiles(real, pools)
    assert not made


def test_nothing_is_prepared_without_a_pool(real: RealSet) -> None:
    assert list(prepare(toy_config(), real, pools=MemoryPools())) == []
    with pytest.raises(ConfigError, match="factor is 8"):
        next(prepare(toy_config(factor=8, ipc=1), toy_real(side=4, per_class=80), pools=MemoryPools()))


def test_another_format_is_never_looked_for(real: RealSet, monkeypatch: pytest.MonkeyPatch) -> None:
    key = member_key(CONFIG, real, 0)
    monkeypatch.setattr(pool_module, "FORMAT", "mdc-pool/0")
    assert member_key(CONFIG, real, 0) != key


def test_a_network_is_asked_for_once(real: RealSet) -> None:
    net, pools = initial_network(CONFIG, real, outer=0), Counting()
    training = RealTraining(CONFIG, real, net, Recorder(real.device))
    pool = Pool(CONFIG, real, net, pools, lambda: training)
    assert pool.trained(0) is pool.trained(0)
    assert pools.puts == 1
