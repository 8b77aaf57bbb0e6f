"""Static inputs, and that what is recorded never waits for the device. The recording itself needs a GPU."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mdc_core.compute.cuda_graph import Recorder, _warn_once, fill
from mdc_core.condensation.condense import condense, start_state
from mdc_core.condensation.iteration import TileUpdate
from mdc_core.condensation.methods import METHODS
from mdc_core.condensation.pool import MemoryPools
from mdc_core.config.settings import CondenseConfig
from mdc_core.data.real_set import RealSet
from tests.core.replay import Eager, Replaying, draws, waits
from tests.core.toys import DREAM, FEATURE, toy_config, toy_real

VARIANTS: list[dict[str, object]] = [
    {},
    {"subset_loss": "none", "batch_syn_max": 5},
    {"subset_loss": "all", "metric": "cos"},
    {"subset_metric": "gradient", "class_wise": True, "metric": "l1"},
    {"augment": ("flip", "color", "crop", "scale", "rotate", "cutout")},
    {"network": {"name": "resnet_ap", "width": 4}, "augment": ("jitter", "resized_crop", "lighting")},
    DREAM,
    FEATURE,
    FEATURE | {"subset_loss": "mls", "network": {"name": "resnet_ap", "width": 4}},
]


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a device, or hand it numbers that are at no fixed address."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not waits(func, args), f"{func} waits"
        assert not draws(func), f"{func} draws"
        return func(*args, **(kwargs or {}))


class Strict(Recorder):
    """Runs everything as a recording would have to, once the first call has made what stays."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.static_shapes = True
        self.checked = 0

    def recorded(
        self, run: Callable[..., None], shapes: Collection[Hashable], *args: object
    ) -> Callable[[], None]:
        calls = 0

        def call() -> None:
            nonlocal calls
            calls += 1
            self.checked += calls > 1
            with nullcontext() if calls == 1 else NoWaiting():
                run(*args)

        return call


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("measured", [False, True])
def test_nothing_that_is_recorded_waits_for_the_device(changes: dict[str, object], measured: bool) -> None:
    config, real = toy_config(**changes), toy_real(side=16)
    measured = measured and config.uses_mls
    recorder = Strict()
    networks = METHODS[config.method].networks(config, real, recorder, MemoryPools())
    update = TileUpdate(config, real, networks.net, recorder)
    state = start_state(config, real)
    update.begin(state.tiles, state.momentum, state.mls, measured)
    for inner in (1, 2, 3):
        networks.ready(1, inner)
        update.run(1, inner)
    assert recorder.checked > 3
    assert not torch.equal(update.tiles, state.tiles)


def test_the_check_sees_what_waits() -> None:
    with NoWaiting():
        for waiting in (lambda t: float(t.sum()), lambda t: t[t > 0], lambda t: torch.tensor([1.0]) + t):
            with pytest.raises(AssertionError, match="waits"):
                waiting(torch.ones(2))
        with pytest.raises(AssertionError, match="draws"):
            torch.rand(2)


def test_static_inputs_are_filled_as_far_as_values_go() -> None:
    @dataclass
    class Inner:
        one: Tensor
        none: None = None

    @dataclass
    class Outer:
        inner: Inner
        two: Tensor

    static = Outer(Inner(torch.zeros(3)), torch.zeros(3, 2))
    fill(static, Outer(Inner(torch.ones(2)), torch.full((1, 2), 5.0)))
    assert static.inner.one.tolist() == [1, 1, 0]
    assert static.two.tolist() == [[5, 5], [0, 0], [0, 0]]


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_why_nothing_is_recorded_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise RuntimeError("no graph of this")

    _warn_once.cache_clear()
    for _ in range(2):
        refused = Recorder(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        assert refused._record(fails) is None
        assert refused.refusal  # without a GPU that there is none, else what `fails` says
    (told,) = caplog.messages
    assert told == f"recording a CUDA graph failed; results are the same, but slower: {refused.refusal}"


class FakeCuda:
    """Streams and captures by name; a capture that fails leaves its stream the current one, as torch's does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, leaves_pool: bool) -> None:
        self.stream = "main"
        self.captured: list[tuple[object, object]] = []
        self.calls: list[tuple[str, int, str]] = []
        self._leaves_pool = leaves_pool
        for name in ("CUDAGraph", "device", "current_device", "current_stream", "set_stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        for name in ("end", "release"):
            full = {"end": "_cuda_endAllocateToPool", "release": "_cuda_releasePool"}[name]
            monkeypatch.setattr(torch._C, full, getattr(self, name), raising=False)

    def CUDAGraph(self) -> Any:
        return type("Graph", (), {})()

    @contextmanager
    def device(self, device: object) -> Iterator[None]:
        yield

    def current_device(self) -> int:
        return 1

    def current_stream(self) -> str:
        return self.stream

    def set_stream(self, stream: str) -> None:
        self.stream = stream

    @contextmanager
    def graph(self, graph: object, pool: object, stream: str) -> Iterator[None]:
        self.captured.append((pool, stream))
        before, self.stream = self.stream, stream
        yield
        self.stream = before

    def end(self, device: int, pool: str) -> None:
        if self._leaves_pool:
            raise RuntimeError("not currently recording to this pool")
        self.calls.append(("end", device, pool))

    def release(self, device: int, pool: str) -> None:
        self.calls.append(("release", device, pool))


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, None])
@pytest.mark.parametrize("leaves_pool", [False, True])
def test_what_a_capture_changes_is_as_before_when_it_has_failed(
    error: type[Exception] | None, leaves_pool: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch, leaves_pool=leaves_pool)
    recorder = Recorder(torch.device("cpu"))
    recorder._pool, recorder._side_stream = "pool", "side"  # type: ignore[assignment]
    seen = []

    def run() -> None:
        seen.append(cuda.stream)
        if error is not None:
            raise error("no")

    assert (recorder._record(run) is None) == (error is not None)
    assert (cuda.stream, seen) == ("main", ["side"])
    # In the recorder's own pool, and on the stream that warms up: a stream of another device would record nothing.
    assert cuda.captured == [("pool", "side")]
    assert len(recorder._graphs) == 1
    # A function that lacks memory says nothing of others.
    assert (recorder.refusal is None) == (error is not RuntimeError)
    ends = [("end", 1, "pool"), ("release", 1, "pool")]
    assert cuda.calls == (ends if error is not None and not leaves_pool else [])


@pytest.mark.parametrize(
    "text", ["GET was unable to find an engine to execute this", "CUBLAS_STATUS_ALLOC_FAILED when calling"]
)
def test_libraries_that_lack_memory_are_understood(text: str) -> None:
    def fails(text: str) -> None:
        raise RuntimeError(text)

    recorder = Recorder(torch.device("cpu"))
    with pytest.raises(torch.OutOfMemoryError, match=text):
        recorder.recorded(fails, ["a"], text)()
    with pytest.raises(RuntimeError, match="shapes") as other:
        recorder.recorded(fails, ["a"], "shapes differ")()
    assert not isinstance(other.value, torch.OutOfMemoryError)


@pytest.mark.parametrize("kind", [Eager, Replaying])
@pytest.mark.parametrize("changes", [{}, FEATURE])
def test_memory_is_free_as_soon_as_its_owner_is(kind: type[Recorder], changes: dict[str, object]) -> None:
    """Without the collector, which runs when it likes."""
    config, real = toy_config(**changes), toy_real()
    state, recorder = start_state(config, real), kind(torch.device("cpu"))
    gc.disable()
    try:
        networks = METHODS[config.method].networks(config, real, recorder, MemoryPools())
        update = TileUpdate(config, real, networks.net, recorder)
        update.begin(state.tiles, state.momentum, state.mls, measured=False)
        for inner in range(1, 6):
            networks.ready(1, inner)
            update.run(1, inner)
        trainer = networks._pool._training()._trainer  # type: ignore[attr-defined]
        held = [weakref.ref(one) for one in (networks, networks.net, trainer, update, update.tiles)]
        del networks, update, trainer
        assert [ref() for ref in held] == [None] * 5
    finally:
        gc.enable()


def test_bfloat16_trains_the_network_alone(real: RealSet) -> None:
    """Matching stays exact: without network training nothing differs, with it something does."""

    def tiles(config: CondenseConfig) -> Tensor:
        *_, last = condense(config, real)
        return last.state.tiles

    for n_data in (0, 16):
        exact, rough = (
            tiles(toy_config(n_data=n_data, outer_loops=2, precision=p)) for p in ("float32", "bf16")
        )
        assert torch.equal(exact, rough) == (n_data == 0)
        torch.testing.assert_close(exact, rough, atol=0.2, rtol=0)
