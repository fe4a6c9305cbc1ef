"""A PyTorch file to safetensors, as a program of its own (see `apart`): `python -m worker.engine.convert`.

A `.pt` file is a pickle. Though `weights_only` narrows what it may do, whoever reads one does so in a process that has
nothing to lose.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.contract.checkpoint import NotTheNetwork, TensorFacts, network_of
from worker.engine import apart
from worker.engine.archive import refuse_odd_archive
from worker.engine.checkpoint import to_safetensors
from worker.engine.errors import InvalidCheckpoint

_EXPECTED = "expected a state dict alone, as torch.save(model.state_dict(), path) writes it"
_DTYPES = {
    **{torch.float32: "F32", torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"},
    **{torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"},
}
_GLOBAL = re.compile(r"GLOBAL ([\w.]{1,100})")


def convert(upload: Path, target: Path) -> None:
    """Write the state dict in `upload` as safetensors. Raises `InvalidCheckpoint`."""
    content = to_safetensors(read_state(upload))
    try:
        target.write_bytes(content)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise InvalidCheckpoint(
            "its tensors come to more than the file, since they share memory: save tensor.clone()"
        ) from error


def read_state(upload: Path) -> dict[str, Tensor]:
    """The state dict in the file. Raises `InvalidCheckpoint`."""
    refuse_odd_archive(upload)
    state = _loaded(upload)
    if not isinstance(state, dict):
        raise InvalidCheckpoint(f"the file holds a {type(state).__name__}: {_EXPECTED}")
    for name, value in state.items():
        _refuse_no_tensor(name, value)
    try:
        # Before anything is copied: a shape costs nothing, and its copy all that it says.
        network_of({name: TensorFacts(_word(each.dtype), tuple(each.shape)) for name, each in state.items()})
    except NotTheNetwork as error:
        raise InvalidCheckpoint(str(error)) from error
    for name, tensor in state.items():
        _refuse_scattered(name, tensor)
    return state


def _loaded(upload: Path) -> Any:
    try:
        return torch.load(upload, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle brings up whatever the unpickler trips over
        if found := _GLOBAL.search(str(error)):
            raise InvalidCheckpoint(f"the file wants {found[1]}, which no state dict does: {_EXPECTED}") from error
        first = str(error).strip().partition("\n")[0][:200]
        raise InvalidCheckpoint(f"PyTorch cannot read it: {first or type(error).__name__}") from error


def _refuse_no_tensor(name: object, value: object) -> None:
    if not isinstance(name, str):
        raise InvalidCheckpoint(f"the file's dict has a name of type {type(name).__name__}: {_EXPECTED}")
    if type(value) not in (Tensor, nn.Parameter):
        raise InvalidCheckpoint(
            f"{name[:64]!r} in the file is of type {type(value).__name__} and no tensor: {_EXPECTED}"
        )
    assert isinstance(value, Tensor)
    if value.layout is not torch.strided or value.device.type != "cpu":
        raise InvalidCheckpoint(f"{name[:64]!r} is a {value.layout} tensor on {value.device}: expected a dense one")


def _refuse_scattered(name: str, tensor: Tensor) -> None:
    """Lest one number stand for a million: of a stride of 0, none of the others have been uploaded."""
    if not tensor.is_contiguous() and not (
        tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    ):
        raise InvalidCheckpoint(
            f"{name} has shape {list(tensor.shape)} and is not contiguous (strides {list(tensor.stride())}): save "
            "tensor.contiguous()"
        )


def _word(dtype: torch.dtype) -> str:
    return _DTYPES.get(dtype, str(dtype))


if __name__ == "__main__":
    torch.set_num_threads(1)
    apart.carry_out(lambda arguments: convert(*map(Path, arguments)), InvalidCheckpoint)
