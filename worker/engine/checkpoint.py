"""State dicts to bytes and back. Input is safetensors only, and nothing in it is believed unchecked."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from app.contract.spec import ModelSpec
from worker.engine.errors import InvalidCheckpoint
from worker.engine.model import skeleton

State = Mapping[str, Tensor]

_DTYPES = {"F32": torch.float32, "I64": torch.int64}


def to_safetensors(state: State) -> bytes:
    """The same state gives the same bytes."""
    return safetensors.torch.save(_plain(state), metadata={"format": "pt"})


def to_torch(state: State) -> bytes:
    """A plain dict of CPU tensors, as `torch.load(…, weights_only=True)` takes it. Same state, same bytes."""
    buffer = io.BytesIO()
    # Into memory: given a path, torch.save would write the path's name into the archive.
    torch.save(_plain(state), buffer)
    return buffer.getvalue()


def _plain(state: State) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def load(path: Path, model: ModelSpec | None = None) -> tuple[ModelSpec, dict[str, Tensor]]:
    """The state dict in `path`, of the widths `model`; None takes the file's own. Raises `InvalidCheckpoint`."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            dtypes = {name: part.get_dtype() for name, part in slices.items()}
            found = model or _widths(path, shapes)
            _refuse_other_network(path, shapes, dtypes, found)
            # Only now, with every size known and right, are values read.
            state = {name: file.get_tensor(name) for name in skeleton(found)}
    except (safetensors.SafetensorError, OSError) as error:
        raise InvalidCheckpoint(f"{path.name} cannot be read as safetensors: {error}") from error
    _refuse_impossible_values(path, state)
    return found, state


def _widths(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> ModelSpec:
    """The first dimension of a layer's weight is its width."""
    layers = ("layer1.0", "layer2.0", "layer3.0", "fc1")
    absent = [f"{layer}.weight" for layer in layers if not shapes.get(f"{layer}.weight")]
    if absent:
        raise InvalidCheckpoint(f"{path.name} lacks {', '.join(absent)}: it is no checkpoint of the cnn architecture")
    first, second, third, hidden = (shapes[f"{layer}.weight"][0] for layer in layers)
    try:
        return ModelSpec(channels=(first, second, third), hidden=hidden)
    except ValidationError as error:
        raise InvalidCheckpoint(f"{path.name}: widths {(first, second, third, hidden)} are out of bounds") from error


def _refuse_other_network(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str], model: ModelSpec
) -> None:
    expected = skeleton(model)
    if odd := sorted(expected.keys() ^ shapes.keys()):
        lacking = [name for name in odd if name in expected]
        raise InvalidCheckpoint(
            f"{path.name} is no checkpoint of the cnn architecture: missing {lacking}, "
            f"unexpected {[name for name in odd if name not in expected]}"
        )
    for name, tensor in expected.items():
        if shapes[name] != tuple(tensor.shape):
            raise InvalidCheckpoint(f"{path.name}: {name} has shape {shapes[name]}, expected {tuple(tensor.shape)}")
        if _DTYPES.get(dtypes[name]) is not tensor.dtype:
            raise InvalidCheckpoint(f"{path.name}: {name} has type {dtypes[name]}, expected {tensor.dtype}")


def _refuse_impossible_values(path: Path, state: State) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InvalidCheckpoint(f"{path.name}: {name} holds values that are not finite, expected finite numbers")
        if name.endswith((".running_var", ".num_batches_tracked")) and bool((tensor < 0).any()):
            raise InvalidCheckpoint(f"{path.name}: {name} is negative, expected zero or more")
