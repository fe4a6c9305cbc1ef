"""State dicts to bytes and back. Input is safetensors only, and nothing in it is believed unchecked."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from app.contract.checkpoint import NAMES, Network, NotTheNetwork, TensorFacts, network_of
from app.contract.network import Ends
from app.contract.spec import ModelSpec
from worker.engine.errors import InvalidCheckpoint

State = Mapping[str, Tensor]


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


def load(
    path: Path, model: ModelSpec | None = None, ends: Ends | None = None, *, called: str | None = None
) -> tuple[Network, dict[str, Tensor]]:
    """The state dict in `path`, of the widths `model` and with those `ends`; None takes the file's own. Raises
    `InvalidCheckpoint`, whose message calls the file so, else by its name."""
    title = called or path.name
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            found = network_of(
                {name: TensorFacts(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()},
                model,
                ends,
            )
            # Only now, with every size known and right, are values read.
            state = {name: file.get_tensor(name) for name in NAMES}
    except NotTheNetwork as error:
        raise InvalidCheckpoint(f"{title}: {error}") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise InvalidCheckpoint(f"{title} cannot be read as safetensors: {error}") from error
    _refuse_impossible_values(title, state)
    return found, state


def _refuse_impossible_values(title: str, state: State) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InvalidCheckpoint(f"{title}: {name} holds values that are not finite, expected finite numbers")
        if name.endswith((".running_var", ".num_batches_tracked")) and bool((tensor < 0).any()):
            raise InvalidCheckpoint(f"{title}: {name} is negative, expected zero or more")
