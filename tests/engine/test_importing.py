"""Networks from elsewhere: the same values come out, and a bad file harms nobody."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from app.contract.report import Manifest
from app.contract.result import ImportResult
from app.contract.spec import parse_stored
from app.contract.status import Phase
from tests.engine.conftest import Listener
from tests.engine.uploads import MODEL, endless, expanded, pickled, state_dict, torch_file, with_pickle, written
from worker.engine import apart, pipeline, sandbox
from worker.engine.apart import Limits
from worker.engine.convert import read_state
from worker.engine.data import DatasetStore
from worker.engine.errors import InvalidCheckpoint, OutOfMemory
from worker.engine.export import file_sha256
from worker.engine.importing import convert_apart, limits_for
from worker.engine.observer import Observer


def _import(upload: Path, out: Path, observer: Observer | None = None) -> ImportResult:
    out.mkdir()
    spec = {
        "kind": "import",
        "format": "torch" if upload.read_bytes().startswith(b"PK") else "safetensors",
        "size": upload.stat().st_size,
        "sha256": file_sha256(upload),
    }
    result = pipeline.run(
        parse_stored(spec),
        datasets=DatasetStore(None),
        inputs={},
        out=out,
        upload=upload,
        observer=observer or Listener(),
    )
    assert isinstance(result, ImportResult)
    return result


def test_both_formats_give_the_same_network_and_a_receipt(tmp_path: Path) -> None:
    """Of a PyTorch file, parameters and channels-last tensors too are taken as plain ones."""
    state, heard = state_dict(), Listener()
    state["fc1.weight"][0] = 0
    odd = {**state, "fc2.bias": nn.Parameter(state["fc2.bias"])}
    odd["layer2.0.weight"] = state["layer2.0.weight"].to(memory_format=torch.channels_last)
    save_file(state, tmp_path / "upload.safetensors", {"from": "elsewhere"})
    torch.save(OrderedDict(odd), tmp_path / "upload.pt")

    results = [_import(tmp_path / f"upload.{kind}", tmp_path / kind, heard) for kind in ("safetensors", "pt")]

    assert heard.heard == 2 * [Phase.IMPORTING, "imported"]
    for kind, result, (_, told) in zip(("safetensors", "pt"), results, heard.records, strict=True):
        upload, out = tmp_path / f"upload.{kind}", tmp_path / kind
        assert (result.channels, result.hidden) == (MODEL.channels, MODEL.hidden)
        assert told["channels"] == list(MODEL.channels)
        zeros = sum(int((state[name] == 0).sum()) for name in ("fc1.weight",)) + 2 + 3 + 4  # BatchNorm's shifts
        assert (result.parameters, result.nonzero) == (MODEL.parameters(), MODEL.parameters() - zeros)
        loaded = load_file(out / "model.safetensors")
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], state[name]) for name in state)
        manifest = Manifest.model_validate_json((out / "manifest.json").read_bytes())
        assert manifest.receipt.inputs == {"upload": result.sha256} == {"upload": file_sha256(upload)}
        assert {file.name for file in manifest.files} == {"model.safetensors", "model.pt"}
        assert {path.name for path in out.iterdir()} == {"model.safetensors", "model.pt", "manifest.json"}
    one, other = ((tmp_path / kind / "model.safetensors").read_bytes() for kind in ("safetensors", "pt"))
    assert one == other


class _Wants:
    def __init__(self, function: Any, *arguments: object) -> None:
        self._told = function, arguments

    def __reduce__(self) -> Any:
        return self._told


def _claims_more_than_it_has() -> bytes:
    """A million numbers by strides that no storage of one has."""
    storage = torch.zeros(1)._typed_storage()  # type: ignore[no-untyped-call]
    claim = _Wants(torch._utils._rebuild_tensor_v2, storage, 0, (1000, 1000), (1000, 1), False, OrderedDict())
    return torch_file({"fc1.weight": claim})


WRONG: dict[str, tuple[bytes, str]] = {
    "a missing tensor": (torch_file(state_dict(fc2__bias=None)), "architecture: missing 'fc2.bias'"),
    "a tensor too many": (torch_file(state_dict(fc3__bias=torch.zeros(1))), "unexpected 'fc3.bias'"),
    "a wrong shape": (
        torch_file(state_dict(fc2__bias=torch.zeros(11))),
        "fc2.bias has shape [11], expected [10], in a network of channels [2, 3, 4] and hidden 5",
    ),
    "half precision": (
        torch_file({name: tensor.half() for name, tensor in state_dict().items()}),
        "layer1.0.weight has type F16, expected F32",
    ),
    "a wrong type": (torch_file(state_dict(fc2__bias=torch.zeros(10, dtype=torch.complex64))), "torch.complex64"),
    "a wrapper": (torch_file({f"module.{name}": tensor for name, tensor in state_dict().items()}), "'module.'"),
    "a nested dict": (
        torch_file({"epoch": 3, "model": state_dict()}),
        "'epoch' in the file is of type int and no tensor",
    ),
    "no dict": (torch_file([1, 2]), "the file holds a list: expected a state dict alone"),
    "nothing": (torch_file({}), "no state dict of the cnn architecture: missing '"),
    "numbers for names": (torch_file({1: torch.zeros(1)}), "has a name of type int"),
    "a whole module": (torch_file(nn.Linear(1, 1)), "the file wants torch.nn.modules.linear.Linear"),
    "a foreign global": (torch_file({"a": _Wants(os.system, "touch exploded")}), "the file wants posix.system"),
    "no pickle": (with_pickle(b"nonsense"), "PyTorch cannot read it"),
    "an empty pickle": (with_pickle(b""), "PyTorch cannot read it"),
    "a sparse tensor": (torch_file(state_dict(fc2__bias=torch.zeros(10).to_sparse())), "expected a dense one"),
    "a scattered tensor": (
        torch_file(state_dict(fc1__weight=torch.zeros(196, 5).T)),
        "fc1.weight has shape [5, 196] and is not contiguous (strides [1, 5])",
    ),
    "a shape bomb": (torch_file(state_dict(fc1__weight=expanded(10**6, 10**6))), "has shape [1000000, 1000000]"),
    "a fitting shape bomb": (
        torch_file(state_dict(fc1__weight=expanded(5, 196))),
        "is not contiguous (strides [0, 0])",
    ),
    "more than its storage": (_claims_more_than_it_has(), "PyTorch cannot read it"),
}


@pytest.mark.parametrize(("content", "said"), WRONG.values(), ids=WRONG)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_what_is_no_such_network_is_refused_by_name(
    tmp_path: Path, content: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(InvalidCheckpoint) as caught:
        read_state(written(tmp_path, content))

    assert said in str(caught.value)
    assert not Path("exploded").exists()


APART: dict[str, tuple[bytes, str]] = {
    "a wrong shape": (WRONG["a wrong shape"][0], "the uploaded file: fc2.bias has shape [11], expected [10]"),
    "not finite": (torch_file(state_dict(fc2__bias=torch.full((10,), torch.inf))), "fc2.bias holds values that"),
    "a memory bomb": (pickled({"a": _Wants(bytearray, 1 << 40)}), "takes more memory than a file of its size may"),
}


@pytest.mark.parametrize(("content", "said"), APART.values(), ids=APART)
def test_what_the_converter_refuses_reaches_whoever_asked(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(InvalidCheckpoint) as caught:
        _import(written(tmp_path, content), tmp_path / "out")

    assert said in str(caught.value)
    assert not list((tmp_path / "out").glob("manifest.json"))


SAMPLE = torch_file(state_dict())


@given(st.data())
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damage_brings_the_refusal_and_nothing_else(data: st.DataObject) -> None:
    """Most of the file's first bytes are its pickle, and its last ones the zip's directory."""
    content = bytearray(SAMPLE)
    places = st.integers(0, 3_000) | st.integers(len(content) - 3_000, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(places)] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])

    with TemporaryDirectory() as folder, contextlib.suppress(InvalidCheckpoint):
        assert read_state(written(Path(folder), cut)).keys() == state_dict().keys()


def test_a_file_that_takes_too_much_time_is_ended_by_the_processors_limit(tmp_path: Path) -> None:
    upload = written(tmp_path, endless())
    limits = limits_for(upload.stat().st_size)._replace(cpu_seconds=1)

    with pytest.raises(InvalidCheckpoint, match="SIGXCPU"):
        convert_apart(upload, tmp_path / "out", limits, lambda: None)
    assert not (tmp_path / "out").exists()


def test_a_file_that_takes_too_long_is_ended_by_the_clock(tmp_path: Path) -> None:
    upload = written(tmp_path, endless())
    limits = limits_for(upload.stat().st_size)._replace(wall_seconds=0.5)

    with pytest.raises(InvalidCheckpoint, match="takes longer to read"):
        convert_apart(upload, tmp_path / "out", limits, lambda: None)
    assert _children() == []


def test_more_than_the_file_may_become_is_not_written(tmp_path: Path) -> None:
    upload = written(tmp_path, torch_file(state_dict()))
    limits = limits_for(upload.stat().st_size)._replace(file_bytes=100)

    with pytest.raises(InvalidCheckpoint, match="come to more than the file"):
        convert_apart(upload, tmp_path / "out", limits, lambda: None)


class _Enough(Exception):
    pass


def test_whoever_ends_the_run_ends_the_converter(tmp_path: Path) -> None:
    upload = written(tmp_path, endless())
    asked: list[int] = []

    def check() -> None:
        asked.extend(_children())
        if asked:
            raise _Enough

    with pytest.raises(_Enough):
        convert_apart(upload, tmp_path / "out", limits_for(upload.stat().st_size), check)
    assert _children() == []
    assert not psutil.pid_exists(asked[0])


def test_a_converter_that_somebody_killed_is_no_fault_of_the_file(tmp_path: Path) -> None:
    upload = written(tmp_path, endless())

    def check() -> None:
        for pid in _children():
            psutil.Process(pid).kill()

    with pytest.raises(OutOfMemory):
        convert_apart(upload, tmp_path / "out", limits_for(upload.stat().st_size), check)


def _children() -> list[int]:
    """The converters of this process."""
    return [each.pid for each in psutil.Process().children() if "worker.engine.convert" in each.cmdline()]


def test_a_converter_is_given_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_DATABASE_URL", "postgresql://secret")
    upload = written(tmp_path, endless())
    seen: list[dict[str, str]] = []

    def check() -> None:
        seen.extend(psutil.Process(pid).environ() for pid in _children())
        if seen:
            raise _Enough

    with pytest.raises(_Enough):
        convert_apart(upload, tmp_path / "out", limits_for(upload.stat().st_size), check)
    assert "PYTHONPATH" in seen[0]
    assert not [name for name in seen[0] if name.startswith("SECATEUR_")]


def test_limits_grow_with_the_file() -> None:
    small, large = limits_for(1), limits_for(1 << 30)
    assert isinstance(small, Limits)
    assert small.memory_bytes < large.memory_bytes
    assert small.file_bytes < large.file_bytes


@pytest.mark.skipif(sandbox.landlock_version() == 0, reason="the kernel has no Landlock")
def test_whoever_takes_a_converter_over_gets_nothing_by_it(tmp_path: Path) -> None:
    upload, secret = written(tmp_path, b"an upload"), tmp_path / "another tenant's"
    secret.write_text("a network")
    out = tmp_path / "out"
    out.mkdir()
    limits = limits_for(upload.stat().st_size)

    with socket.create_server(str(tmp_path / "s"), family=socket.AF_UNIX) as database:
        arguments = [str(upload), str(out / "target"), str(secret), database.getsockname()]
        with pytest.raises(InvalidCheckpoint) as told:
            apart.run("tests.engine.intruder", arguments, limits, lambda: None, InvalidCheckpoint)

    assert json.loads(str(told.value).partition(": ")[2]) == {
        "the upload": "an upload",
        "a file in its folder": "written",
        "another tenant's file": "PermissionError",
        "to overwrite that": "PermissionError",
        "the worker's environment": "PermissionError",
        "the worker's checkout": "PermissionError",
        "the database": "PermissionError",
        "the internet": "PermissionError",
        "a program": "PermissionError",
    }
    assert secret.read_text() == "a network"
