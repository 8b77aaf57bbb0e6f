"""Checkpoints: a `CondenseState` to bytes and back, as safetensors with metadata, never as pickle."""

from __future__ import annotations

import json

from safetensors import SafetensorError
from safetensors.torch import load, save

from mdc_core.condensation.condense import CondenseState
from mdc_core.condensation.methods import METHODS
from mdc_core.condensation.mls import MlsState, Track
from mdc_core.config.settings import CondenseConfig
from mdc_core.errors import FormatError

FORMAT = "mdc-checkpoint/1"


def to_bytes(state: CondenseState, config: CondenseConfig) -> bytes:
    """The state and its configuration as bytes; floats of the MLS are stored exactly."""
    tracks = [[track.selections, track.previous] for track in state.mls.tracks]
    metadata = {
        "format": FORMAT,
        "config": config.model_dump_json(),
        "outer": str(state.outer),
        "mls": json.dumps(tracks),
        "data": state.data,
    }
    tensors = {"tiles": state.tiles, "momentum": state.momentum, **state.optimiser_state}
    return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata)


def from_bytes(data: bytes) -> tuple[CondenseState, CondenseConfig]:
    """The state in a checkpoint, on the CPU, and its configuration.

    Raises:
        FormatError: the bytes are damaged, or of a version that this release does not know.
    """
    metadata = _metadata(data)
    if metadata.get("format") != FORMAT:
        raise FormatError(f"this checkpoint is of format {metadata.get('format')!r}; known is {FORMAT!r}")
    try:
        tensors = load(data)
        tracks = [
            Track(tuple(selections), None if previous is None else tuple(previous))
            for selections, previous in json.loads(metadata["mls"])
        ]
        config = CondenseConfig.model_validate_json(metadata["config"])
        optimiser_state = {
            name: tensors[name] for name in METHODS[config.method].initial_optimiser_state(tensors["tiles"])
        }
        state = CondenseState(
            outer=int(metadata["outer"]),
            tiles=tensors["tiles"],
            momentum=tensors["momentum"],
            optimiser_state=optimiser_state,
            mls=MlsState(tuple(tracks)),
            data=metadata["data"],
        )
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise FormatError(f"this checkpoint is damaged: {error}") from error
    return state, config


def resume(data: bytes, config: CondenseConfig) -> CondenseState:
    """The state of a checkpoint that was made with `config`; only `outer_loops` may differ.

    Raises:
        FormatError: the checkpoint is damaged, or made with other settings, which the message names.
    """
    state, made_with = from_bytes(data)
    ours, theirs = config.model_dump(), made_with.model_dump()
    # No loop depends on how many follow it, so the number of loops may change between runs.
    differing = [name for name in ours if name != "outer_loops" and ours[name] != theirs[name]]
    if differing:
        name = differing[0]
        raise FormatError(
            f"this checkpoint was made with {name} = {theirs[name]!r}, not {ours[name]!r}: "
            f"use the same settings, or start a new run"
        )
    if state.outer > config.outer_loops:
        raise FormatError(
            f"this checkpoint is of outer loop {state.outer}, but only {config.outer_loops} are asked for: "
            f"raise outer_loops, or start a new run"
        )
    return state


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors header. The library reads it from files only, so it is parsed here."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        metadata = header.get("__metadata__", {})
    except (ValueError, AttributeError) as error:
        raise FormatError(f"this is not a checkpoint: {error}") from error
    if not isinstance(metadata, dict):
        raise FormatError("this is not a checkpoint: its metadata is not an object")
    return metadata
