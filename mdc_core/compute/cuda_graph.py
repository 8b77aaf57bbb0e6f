"""CUDA graphs: a sequence of kernels, recorded once and started as one (docs/performance.md).

A condensation starts thousands of small kernels per iteration; starting them one by one takes longer than computing.
What is recorded works on tensors in fixed places: new numbers are copied there, and results are read from there.
The same code without a graph is what runs on a CPU, and where recording is impossible.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache, partial
from types import MethodType
from typing import Any, Protocol
from weakref import WeakMethod

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before recording: libraries choose their kernels and take their workspace in these."""
_NO_MEMORY = ("unable to find an engine", "ALLOC_FAILED", "CUDA error: out of memory")
"""What cuDNN and cuBLAS say when there is no room for their workspace, in errors of no kind of their own."""


class Recording(Protocol):
    """Kernels that are started as one."""

    def replay(self) -> None:
        """Run them on the tensors that they were recorded with."""


class Recorder:
    """Records functions on one device.

    Their graphs share one pool of memory: they run one after the other, and none leaves a result in it. The calls that
    warm up use memory beside the pool, which goes back to the device before recording begins
    (`estimate.items_that_fit`).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.refusal: str | None = None
        """Why functions are called kernel by kernel on a GPU, if they are."""
        self.static_shapes = device.type != "cpu"
        """Whether tensors are to keep their places and shapes from call to call."""
        self.records = device.type == "cuda"
        self._pool: Any = torch.cuda.graph_pool_handle() if self.records else None
        self._side_stream = torch.cuda.Stream(device) if self.records else None
        self._warm: set[Hashable] = set()
        self._graphs: list[object] = []
        """Every graph, also failed ones: destroying one may free workspaces of others, the last one takes the pool."""

    def recorded(
        self, run: Callable[..., None], shapes: Collection[Hashable], *args: object
    ) -> Callable[[], None]:
        """`run(*args)`, which returns nothing and does not ask the device for values: recorded after a few calls.

        Every call takes effect, also those before it is recorded and those after recording failed. A method does not
        keep its object alive, which has to be there when it is called: so that memory is free as soon as its owner is.

        Args:
            shapes: what kernels are chosen by. Functions of shapes that have all been warmed up are recorded at once.

        Raises:
            torch.OutOfMemoryError: by a call; the function has done nothing after the operation that did not fit.
        """
        calls, recording, may_record = 0, None, self.records
        run = _weakly_bound(run, args)

        def call() -> None:
            nonlocal calls, recording, may_record
            may_record = may_record and self.refusal is None
            if recording is None and may_record and self._warm.issuperset(shapes):
                recording = self._record(run)
                may_record = recording is not None
            with _as_out_of_memory():
                if recording is not None:
                    recording.replay()
                elif may_record:
                    self._warm_up(run)
                    calls += 1
                    if calls == WARM_UP:
                        self._warm.update(shapes)
                else:
                    run()

        return call

    def _warm_up(self, run: Callable[[], None]) -> None:
        """Run on a stream of its own, as recording does."""
        assert self._side_stream is not None
        here = torch.cuda.current_stream(self.device)
        self._side_stream.wait_stream(here)
        try:
            with torch.cuda.stream(self._side_stream):
                run()
        finally:
            here.wait_stream(self._side_stream)

    def _record(self, run: Callable[[], None]) -> Recording | None:
        """One call, which is not carried out; None when it cannot be recorded."""
        try:
            with _as_out_of_memory():
                return self._capture(run)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            if not isinstance(
                error, torch.OutOfMemoryError
            ):  # then functions that take less may still be recorded
                self.refusal = reason
            _warn_once(reason)
            return None

    def _capture(self, run: Callable[[], None]) -> Recording:
        graph = torch.cuda.CUDAGraph()
        self._graphs.append(graph)
        # The stream belongs to our device, which need not be the current one: torch's own would record nothing there.
        with torch.cuda.device(self.device):
            here = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self._side_stream):
                    run()
            except RuntimeError:
                self._end_allocation()
                raise
            finally:  # where the end of a capture fails, torch leaves its stream the current one
                torch.cuda.set_stream(here)
        return graph

    def _end_allocation(self) -> None:
        """Let allocations leave the pool after a capture that failed: up to torch 2.11 they go there for ever."""
        device = torch.cuda.current_device()
        try:
            torch._C._cuda_endAllocateToPool(device, self._pool)
        except RuntimeError:  # they have left it
            return
        torch._C._cuda_releasePool(device, self._pool)


def _weakly_bound(run: Callable[..., None], args: tuple[object, ...]) -> Callable[[], None]:
    """A call of it; of a method, without holding its object, which holds what is returned."""
    if not isinstance(run, MethodType):
        return partial(run, *args)
    method = WeakMethod(run)

    def call() -> None:
        found = method()
        assert found is not None, "whoever calls this holds the object"
        found(*args)

    return call


@contextmanager
def _as_out_of_memory() -> Iterator[None]:
    """Memory that has run out is a `torch.OutOfMemoryError`, whoever noticed."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if any(text in str(error) for text in _NO_MEMORY):
            raise torch.OutOfMemoryError(str(error)) from error
        raise


@cache  # each reason once in a process, whatever the number of recorders
def _warn_once(refusal: str) -> None:
    logging.getLogger(__name__).warning(
        "recording a CUDA graph failed, which costs time only: %s", refusal or "no reason given"
    )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy, on its way to a GPU one that neither side waits for; the tensor itself where it is there already."""
    return _staged(tensor, device).to(device, non_blocking=_crosses(tensor, device))


def fill(places: object, values: object) -> None:
    """Copy the tensors of a dataclass into the first rows of those of another one, of the same fields."""
    for place, value in zip(_tensors(places), _tensors(values), strict=True):
        place[: len(value)].copy_(_staged(value, place.device), non_blocking=True)


def _staged(tensor: Tensor, device: torch.device) -> Tensor:
    """What can be copied to the device while the host goes on: pinned memory for a GPU, else the tensor itself."""
    if not _crosses(tensor, device):
        return tensor
    # Pinning keeps strides: where elements share memory, as after `expand`, it could not write them.
    return tensor.contiguous().pin_memory()


def _crosses(tensor: Tensor, device: torch.device) -> bool:
    """Whether a copy leads from the host to a GPU."""
    return device.type == "cuda" and tensor.device.type == "cpu"


def _tensors(value: Any) -> Iterator[Tensor]:
    """Those of a dataclass and of the dataclasses in it, in the order of their fields."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
