"""CUDA graphs: a sequence of kernels, recorded once and started as one (docs/performance.md).

A condensation starts thousands of small kernels per iteration; starting them one by one takes longer than computing.
What is recorded works on tensors in fixed places: new numbers are copied there, and results are read from there.
The same code without a graph is what runs on a CPU, and where recording is impossible.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

_WARM_UP = 3
"""Calls before recording: libraries choose their kernels and take their workspace in these."""


class Recorder:
    """Records functions on one device; their graphs share memory, since they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.refusal: str | None = None
        """Why functions are called kernel by kernel on a GPU, if they are."""
        self.fixed = device.type != "cpu"
        """Whether tensors are to keep their places and shapes from call to call."""
        records = device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if records else None
        self._aside = torch.cuda.Stream(device) if records else None

    def recorded(self, run: Callable[[], None]) -> Callable[[], None]:
        """`run`, which takes and returns nothing and does not ask the device for values: recorded after a few calls.

        Every call takes effect, also those before it is recorded and those after recording failed.
        """
        calls, graph = 0, None

        def call() -> None:
            nonlocal calls, graph
            if self._aside is not None and self.refusal is None and calls == _WARM_UP:
                graph = self._record(run)
            if graph is not None:
                graph.replay()
            elif self._aside is not None and calls < _WARM_UP:
                self._beside(run)
            else:
                run()
            calls += 1

        return call

    def _beside(self, run: Callable[[], None]) -> None:
        """Run on a stream of its own, as recording does."""
        assert self._aside is not None
        here = torch.cuda.current_stream(self.device)
        self._aside.wait_stream(here)
        with torch.cuda.stream(self._aside):
            run()
        here.wait_stream(self._aside)

    def _record(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """The graph of one call, which is not carried out; None when it cannot be recorded."""
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                run()
        except RuntimeError as error:
            self.refusal = str(error).partition("\n")[0]
            _tell(self.refusal)
            return None
        return graph


@cache  # each reason once in a process: every stack of an evaluation has a recorder of its own
def _tell(refusal: str) -> None:
    logging.getLogger(__name__).warning(
        "recording a CUDA graph failed, which costs time only: %s", refusal or "no reason given"
    )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that neither host nor device waits for; the tensor itself where it is there already."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def fill(places: object, values: object) -> None:
    """Copy the tensors of a dataclass into the first rows of those of another one, of the same fields."""
    for place, value in zip(_tensors(places), _tensors(values), strict=True):
        place[: len(value)].copy_(to_device(value, place.device))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Those of a dataclass and of the dataclasses in it, in the order of their fields."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
