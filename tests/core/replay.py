"""A GPU's recordings and its pinned memory, emulated on the CPU.

`Replaying` records the operators of one call with the very tensors that they read and wrote, and carries out that list
from then on. As on a GPU, recording has no effect by itself, Python does not run again, and what was allocated while
recording holds nothing once a replay is over: others use that memory too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from mdc_core.compute import cuda_graph
from mdc_core.compute.cuda_graph import Recorder, Recording

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "lift_fresh")
"""Operators that make the host wait for a device, or hand it numbers that are at no fixed address."""
DRAWING = ("rand", "randn", "randint", "randperm", "uniform_", "normal_", "bernoulli_")


def waits(func: Any, args: Any) -> bool:
    """Whether an operator makes the host wait; an index by a mask does, since its True values have to be counted."""
    name = func.overloadpacket.__name__
    if name in ("index", "index_put", "index_put_"):
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return name in WAITING


def draws(func: Any) -> bool:
    """Whether an operator draws random numbers."""
    return func.overloadpacket.__name__ in DRAWING


class Eager(Recorder):
    """Fixed addresses and shapes without a recording: a GPU on which recording has failed."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.static_shapes = True


class Replaying(Eager):
    """Records and replays as a GPU does; keeps count."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.records = True
        self.warmed, self.recordings, self.replays = 0, 0, 0

    def _warm_up(self, run: Callable[[], None]) -> None:
        self.warmed += 1
        run()

    def _capture(self, run: Callable[[], None]) -> Recording:
        self.recordings += 1
        return _Replay(run, self)


class _Replay:
    """The operators of one call."""

    def __init__(self, run: Callable[[], None], recorder: Replaying) -> None:
        self._recorder = recorder
        with _Listing() as listing:
            run()
        listing.undo()
        self._operators, self._own = listing.operators, listing.own()
        self._forget()

    @torch.no_grad()
    def replay(self) -> None:
        self._recorder.replays += 1
        for func, args, kwargs, outputs in self._operators:
            again = func(*args, **kwargs)
            if not _writes(func):
                for target, value in zip(outputs, _tensors(again), strict=True):
                    target.copy_(value)
        self._forget()

    def _forget(self) -> None:
        """Other graphs use the same memory."""
        for tensor in self._own:
            tensor.fill_(float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)


class _Listing(TorchDispatchMode):
    """Lists operators while they run, and can undo what they did to tensors that were there before."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._new: dict[int, Tensor] = {}
        """What was allocated meanwhile, by the address of its memory."""
        self._baked: set[int] = set()
        """Addresses of random numbers: drawn on the host, they are the same in every replay."""
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._alive: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if waits(func, args):
            raise RuntimeError(f"{func} is not permitted while recording")
        inputs = _tensors((args, kwargs))
        if _writes(func):
            self._save(tensor for tensor in inputs if _address(tensor) not in self._new)
        result = func(*args, **kwargs)
        # The same memory, unknown to autograd.
        args, kwargs, listed = tree_map_only(Tensor, Tensor.detach, (args, kwargs, result))
        outputs = _tensors(listed)
        self._alive += outputs
        if draws(func):
            self._baked.update(map(_address, outputs))
            return result
        fresh = [o for o in outputs if _address(o) not in {_address(i) for i in inputs}]
        if _writes(func) or fresh:  # else a view, or nothing
            self.operators.append((func, args, kwargs, outputs))
        if not _writes(func):
            self._new.update((_address(tensor), tensor) for tensor in fresh)
        return result

    def undo(self) -> None:
        """Give tensors that were there before the values that they had."""
        for target, value in self._before.values():
            target.copy_(value)

    def own(self) -> list[Tensor]:
        """What was allocated meanwhile, each piece of memory once, without bools and what is not ours to forget."""
        return [
            tensor
            for address, tensor in self._new.items()
            if address not in self._baked and tensor.dtype != torch.bool and tensor.numel()
        ]

    def _save(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if _address(tensor) not in self._before:
                whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                self._before[_address(tensor)] = whole, whole.clone()


def _writes(func: Any) -> bool:
    """Whether it changes one of its arguments."""
    return bool(func._schema.is_mutable)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def emulated(monkeypatch: pytest.MonkeyPatch, kind: type[Recorder]) -> list[Any]:
    """Let all that computes record with `kind`; the recorders that are made from now on."""
    made: list[Any] = []

    def make(device: torch.device) -> Recorder:
        recorder = kind(device)
        made.append(recorder)
        return recorder

    for name in ("condensation.condense", "training.evaluate", "training.batched", "training.calibrate"):
        monkeypatch.setattr(f"mdc_core.{name}.Recorder", make)
    return made


def pinned(tensor: Tensor) -> Tensor:
    """What pinning memory does: the same sizes and strides, then a copy."""
    memory = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    return memory.copy_(tensor)


@pytest.fixture
def pinned_memory(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every copy to a device goes through pinned memory, as if that were a GPU; what was pinned."""
    seen: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        seen.append(tensor)
        return pinned(tensor)

    monkeypatch.setattr(cuda_graph, "_crosses", lambda tensor, device: True)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    return seen
