from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from app.contract.spec import ModelSpec
from worker.engine.checkpoint import load, to_safetensors, to_torch
from worker.engine.errors import InvalidCheckpoint
from worker.engine.model import fresh

MODEL = ModelSpec(channels=(2, 3, 4), hidden=5)


@pytest.fixture
def state() -> dict[str, Tensor]:
    return dict(fresh(MODEL, seed=1).state_dict())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_what_is_saved_is_loaded_bit_for_bit(state: dict[str, Tensor], file: Path) -> None:
    file.write_bytes(to_safetensors(state))

    (model, _), loaded = load(file)

    assert (model.channels, model.hidden) == ((2, 3, 4), 5)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_a_pt_file_holds_the_same_and_needs_no_trust(state: dict[str, Tensor]) -> None:
    loaded = torch.load(io.BytesIO(to_torch(state)), weights_only=True)

    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_the_same_state_gives_the_same_bytes(state: dict[str, Tensor]) -> None:
    copy = {name: tensor.clone() for name, tensor in state.items()}

    assert to_safetensors(state) == to_safetensors(copy)
    assert to_torch(state) == to_torch(copy)


def _spoilt(state: dict[str, Tensor], file: Path, **changes: Tensor | None) -> Path:
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        state.pop(name)
        if tensor is not None:
            state[name] = tensor
    save_file(state, file)
    return file


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fc2__bias": None}, r"missing 'fc2.bias'"),
        ({"fc1__weight": None}, r"missing 'fc1.weight'"),
        ({"fc2__bias": torch.zeros(11)}, r"fc2.bias has shape \[11\], expected \[10\]"),
        ({"fc2__bias": torch.zeros(10, dtype=torch.float64)}, "fc2.bias has type F64"),
        ({"fc2__bias": torch.full((10,), torch.nan)}, "fc2.bias holds values that are not finite"),
        ({"layer1__1__running_var": torch.full((2,), -1.0)}, "running_var is negative"),
    ],
)
def test_what_is_no_such_network_is_refused_by_name(
    state: dict[str, Tensor], file: Path, changes: dict[str, Tensor | None], words: str
) -> None:
    with pytest.raises(InvalidCheckpoint, match=words):
        load(_spoilt(state, file, **changes))


def test_a_tensor_too_many_is_refused(state: dict[str, Tensor], file: Path) -> None:
    save_file({**state, "fc3.weight": torch.zeros(1)}, file)

    with pytest.raises(InvalidCheckpoint, match=r"unexpected 'fc3\.weight'"):
        load(file)


def test_other_widths_than_asked_for_are_refused(state: dict[str, Tensor], file: Path) -> None:
    save_file(state, file)

    with pytest.raises(InvalidCheckpoint, match="shape"):
        load(file, ModelSpec(channels=(2, 3, 4), hidden=6))


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, b"\x00" * 8, pickle.dumps(_Bomb())], ids=["empty", "ff", "zeros", "pickle"]
)
def test_what_is_no_safetensors_is_refused_and_never_run(
    file: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    file.write_bytes(content)

    with pytest.raises(InvalidCheckpoint, match="cannot be read"):
        load(file)
    assert not Path("exploded").exists()


def test_a_file_that_is_gone_or_a_folder_is_refused(file: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match="cannot be read"):
        load(file)
    file.mkdir()
    with pytest.raises(InvalidCheckpoint, match="cannot be read"):
        load(file)


def test_a_file_that_was_cut_off_is_refused(state: dict[str, Tensor], file: Path) -> None:
    file.write_bytes(to_safetensors(state)[:-1])

    with pytest.raises(InvalidCheckpoint):
        load(file)
