"""CUDA graphs: a sequence of kernels, recorded once and launched as one (docs/results/performance.md).

A condensation launches thousands of small kernels per iteration; launching them one by one takes longer than computing.
A graph reads and writes tensors at fixed addresses: inputs are copied into static tensors, results are read from them.
On a CPU, and where recording fails, the same code runs without a graph.
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
"""Calls before recording, in which libraries choose their kernels and allocate their workspaces."""
_NO_MEMORY = ("unable to find an engine", "ALLOC_FAILED", "CUDA error: out of memory")
"""Messages of cuDNN and cuBLAS when there is no memory for a workspace. They raise plain RuntimeErrors."""


class Recording(Protocol):
    """A recorded sequence of kernels."""

    def replay(self) -> None:
        """Run them on the tensors that they were recorded with."""


class Recorder:
    """Records functions on one device.

    All graphs share one memory pool. That is safe because they run one after the other, and no result stays in the
    pool. Warm-up calls allocate outside the pool; that memory is freed before recording (`estimate.items_that_fit`).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.refusal: str | None = None
        """Why a GPU runs the functions kernel by kernel; None: it records them."""
        self.static_shapes = device.type != "cpu"
        """Whether tensors must keep their addresses and shapes from call to call."""
        self.records = device.type == "cuda"
        self._pool: Any = torch.cuda.graph_pool_handle() if self.records else None
        self._side_stream = torch.cuda.Stream(device) if self.records else None
        self._warm: set[Hashable] = set()
        self._graphs: list[object] = []
        """Every graph, failed ones too. Destroying one may free workspaces of others; destroying the last frees the
        pool."""

    def recorded(
        self, run: Callable[..., None], shapes: Collection[Hashable], *args: object
    ) -> Callable[[], None]:
        """A call of `run(*args)` that is recorded after `WARM_UP` calls and replayed from then on.

        `run` returns nothing and reads no value back from the device. Every call has its effect: warm-up calls do, and
        so do calls after a failed recording. A bound method does not keep its object alive, so that memory is freed
        with its owner; whoever calls must hold the object.

        Args:
            shapes: the keys by which kernels are chosen. A function whose keys are all warm is recorded at its first
                call.

        Raises:
            torch.OutOfMemoryError: by a call; nothing after the operation that did not fit has run.
        """
        calls, recording, may_record = 0, None, self.records
        run = _weakly_bound(run, args)

        def call() -> None:
            nonlocal calls, recording, may_record
            may_record = may_record and self.refusal is None
            # Capturing runs nothing, so the recorded call is replayed right away.
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
        """Run on the side stream, as recording does: libraries keep a workspace per stream."""
        assert self._side_stream is not None
        current = torch.cuda.current_stream(self.device)
        self._side_stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._side_stream):
                run()
        finally:
            current.wait_stream(self._side_stream)

    def _record(self, run: Callable[[], None]) -> Recording | None:
        """One call, captured but not run; None if it cannot be recorded."""
        try:
            with _as_out_of_memory():
                return self._capture(run)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            # Out of memory concerns this function alone: smaller ones may still be recorded.
            if not isinstance(error, torch.OutOfMemoryError):
                self.refusal = reason
            _warn_once(reason)
            return None

    def _capture(self, run: Callable[[], None]) -> Recording:
        graph = torch.cuda.CUDAGraph()
        self._graphs.append(graph)
        # Torch's default capture stream belongs to the current device, which may be another one: it would record
        # nothing of ours.
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self._side_stream):
                    run()
            except RuntimeError:
                self._end_allocation()
                raise
            finally:  # if a capture fails at its end, torch leaves the capture stream current
                torch.cuda.set_stream(current)
        return graph

    def _end_allocation(self) -> None:
        """Stop allocating from the pool after a failed capture: up to torch 2.11 that would go on forever."""
        device = torch.cuda.current_device()
        try:
            torch._C._cuda_endAllocateToPool(device, self._pool)
        except RuntimeError:  # it has stopped already
            return
        torch._C._cuda_releasePool(device, self._pool)


def _weakly_bound(run: Callable[..., None], args: tuple[object, ...]) -> Callable[[], None]:
    """`run(*args)` as a call without arguments; a method's object, which holds this call, is held weakly."""
    if not isinstance(run, MethodType):
        return partial(run, *args)
    reference = WeakMethod(run)

    def call() -> None:
        method = reference()
        assert method is not None, "whoever calls this holds the object"
        method(*args)

    return call


@contextmanager
def _as_out_of_memory() -> Iterator[None]:
    """Raise `torch.OutOfMemoryError` whichever library runs out of memory."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if any(text in str(error) for text in _NO_MEMORY):
            raise torch.OutOfMemoryError(str(error)) from error
        raise


@cache  # one warning per reason and process, however many recorders there are
def _warn_once(refusal: str) -> None:
    logging.getLogger(__name__).warning(
        "recording a CUDA graph failed; results are the same, but slower: %s", refusal or "no reason given"
    )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, made without blocking host or GPU; the tensor itself if it is there already."""
    return _staged(tensor, device).to(device, non_blocking=_crosses(tensor, device))


def fill(static: object, values: object) -> None:
    """Copy the tensors of a dataclass into the first rows of those of another, field by field."""
    for target, value in zip(_tensors(static), _tensors(values), strict=True):
        target[: len(value)].copy_(_staged(value, target.device), non_blocking=True)


def _staged(tensor: Tensor, device: torch.device) -> Tensor:
    """The source of an asynchronous copy: pinned memory for a GPU, else the tensor itself."""
    if not _crosses(tensor, device):
        return tensor
    # Pinning keeps strides, and cannot write elements that share memory, as they do after `expand`.
    return tensor.contiguous().pin_memory()


def _crosses(tensor: Tensor, device: torch.device) -> bool:
    """Whether a copy goes from the host to a GPU."""
    return device.type == "cuda" and tensor.device.type == "cpu"


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a dataclass and of the dataclasses in it, in the order of their fields."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
