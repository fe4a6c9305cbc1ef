from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.engine.pruned import Pruned, dense, pruned
from worker.engine import unpack as reader
from worker.engine.compact import INPUTS, Compact, Widths, compact, shapes
from worker.engine.model import Cnn
from worker.engine.packed import pack
from worker.engine.unpack import unpack

State = dict[str, Tensor]

DENSE_BYTES = 1_932_824
"""Of the dense network's `.pt` file."""

FLOATS = st.floats(width=32, allow_nan=False)


def _assert_holds(content: bytes, state: State) -> None:
    held = {name: torch.from_numpy(array) for name, array in unpack(content).items()}
    assert list(held) == list(state)
    for name, tensor in state.items():
        assert held[name].dtype is tensor.dtype
        assert torch.equal(held[name], tensor)


@st.composite
def _states(draw: st.DrawFn) -> State:
    """Tensors of zeros with some entries set, on both sides of the lengths at which a gap needs another byte."""
    state: State = {}
    for index in range(draw(st.integers(0, 4))):
        sides = draw(st.sampled_from([(), (0,), (1,), (3, 5), (127,), (128,), (129,), (2, 0, 3), (260, 65), (16_500,)]))
        tensor = torch.zeros(sides)
        if tensor.numel():
            places = st.sampled_from([0, 1, 127, 128, 129, 16_383, 16_384, 16_385, tensor.numel() - 1])
            for place, value in draw(st.dictionaries(places, FLOATS, max_size=6)).items():
                tensor.view(-1)[place % tensor.numel()] = value
        state[f"tensor{index}"] = tensor
    if draw(st.booleans()):
        indices = draw(st.lists(st.integers(0, 100_000), max_size=9, unique=True).map(sorted))
        state["indices"] = torch.tensor(indices, dtype=torch.int64)
    return state


@given(_states())
@example({})
@example({"a": torch.zeros(100_000)})
@example({"a": torch.tensor(3.5)})
@example({"a": torch.cat([torch.zeros(1 << 21), torch.ones(1)])})
def test_what_is_packed_is_unpacked_bit_for_bit(state: State) -> None:
    _assert_holds(pack(state), state)


@settings(max_examples=30, deadline=None)
@given(pruned())
def test_plain_and_compact_states_come_back_and_load(network: Pruned) -> None:
    plain = {name: tensor for name, tensor in network.state.items() if not name.endswith("num_batches_tracked")}
    small = compact(network.state)

    _assert_holds(pack(network.state), plain)
    _assert_holds(pack(small.state), dict(small.state))

    network.network().load_state_dict({n: torch.from_numpy(array) for n, array in unpack(pack(plain)).items()})


def test_values_that_are_not_finite_come_back_and_a_negative_zero_is_a_zero() -> None:
    values = torch.tensor([torch.nan, -0.0, torch.inf, -torch.inf, 1e-45])

    back = torch.from_numpy(unpack(pack({"a": values}))["a"])

    assert torch.equal(back.nan_to_num(7), values.nan_to_num(7))
    assert not torch.signbit(back[1])


def _sparse(kept: int, inputs: int) -> Compact:
    """The source's network at its full widths with so many weights left, anywhere: the longest gaps there can be."""
    widths = Widths(channels=(16, 16, 32), hidden=300, inputs=inputs)
    state = {name: torch.zeros(shape) for name, shape in shapes(widths).items()}
    generator = torch.Generator().manual_seed(kept)
    if widths.gathers:
        state[INPUTS] = torch.randperm(1568, generator=generator)[:inputs].sort().values
    ends = torch.tensor([tensor.numel() * (name != INPUTS) for name, tensor in state.items()]).cumsum(0)
    floats = torch.zeros(int(ends[-1]))
    floats[torch.randperm(len(floats), generator=generator)[:kept]] = torch.randn(kept, generator=generator)
    parts = floats.tensor_split(ends[:-1])
    return Compact(
        widths, {n: t if n == INPUTS else p.view_as(t) for (n, t), p in zip(state.items(), parts, strict=True)}
    )


@pytest.mark.parametrize("inputs", [1568, 1200])
def test_a_network_of_1540_weights_takes_a_hundred_and_fiftieth_of_the_dense_file(inputs: int) -> None:
    small = _sparse(1540, inputs)
    assert small.nonzero == 1540

    content = pack(small.state)

    assert len(content) <= DENSE_BYTES // 150 == 12_885
    _assert_holds(content, dict(small.state))


def test_the_same_state_gives_the_same_bytes() -> None:
    assert pack(dense(seed=1).state) == pack(dense(seed=1).state) != pack(dense(seed=2).state)
    assert {entry.date_time for entry in zipfile.ZipFile(io.BytesIO(pack({}))).infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_numpy_alone_opens_it(tmp_path: Path) -> None:
    file = tmp_path / "packed.npz"
    file.write_bytes(pack({"a": torch.tensor([0.0, 0.0, 2.5]), "b": torch.tensor([5, 205])}))

    with np.load(file, allow_pickle=False) as archive:
        assert json.loads(archive["header"].tobytes()) == {
            "format": "secateur-packed",
            "version": 1,
            "tensors": [["a", [3], "float32"], ["b", [2], "int64"]],
        }
        assert archive["gaps"].tolist() == [5, 0x80 | (200 & 127), 1, 2]
        assert archive["values"].tolist() == [2.5]
    assert unpack(file)["b"].tolist() == unpack(str(file))["b"].tolist() == [5, 205]


ALONE = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "unpack"}:
            raise ImportError(f"{name} is behind the wall")
sys.meta_path.insert(0, Wall())
import unpack
state = unpack.unpack("packed.npz")
print(state["fc2.bias"].shape, sum(int((array != 0).sum()) for array in state.values()))
"""


def test_the_reader_stands_alone(tmp_path: Path) -> None:
    state = compact(dense().state).state
    shutil.copy(reader.__file__, tmp_path / "unpack.py")
    (tmp_path / "packed.npz").write_bytes(pack(state))
    (tmp_path / "alone.py").write_text(ALONE)

    done = subprocess.run(
        [sys.executable, "alone.py"], cwd=tmp_path, env={}, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"(10,) {sum(int(tensor.count_nonzero()) for tensor in state.values())}\n"


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(2, dtype=torch.float64), "a has type float64"),
        (torch.tensor([2, 1]), "a does not ascend"),
        (torch.tensor([-1]), "a does not ascend"),
        (torch.tensor([1 << 35]), "a does not ascend from zero or more, or leaps"),
    ],
)
def test_what_the_format_cannot_say_is_not_packed(tensor: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pack({"a": tensor})


def _document(*tensors: object, **changes: Any) -> dict[str, Any]:
    return {"format": "secateur-packed", "version": 1, "tensors": list(tensors), **changes}


def _file(header: object = None, gaps: object = (), values: object = ()) -> bytes:
    """A file by hand: one tensor `a` of four entries unless the header says another thing."""
    text = header if isinstance(header, bytes) else json.dumps(header or _document(["a", [4], "float32"])).encode()
    content = io.BytesIO()
    header = np.frombuffer(text, np.uint8)
    np.savez_compressed(content, header=header, gaps=np.array(gaps, np.uint8), values=np.array(values, "<f4"))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "must be an .npz archive"),
        (b"\x80\x04.", "must be an .npz archive"),
        (b"PK\x03\x04" + b"\x00" * 100, "cannot be read"),
        (_file(b"{"), "no JSON"),
        (_file(b"[" * 100_000), "no JSON"),
        (_file(b"\xff"), "no JSON"),
        (_file(b"[]"), "not of secateur-packed version 1"),
        (_file(b"3"), "not of secateur-packed version 1"),
        (_file(_document(version=2)), "not of secateur-packed version 1"),
        (_file(_document(tensors={})), "not of secateur-packed version 1"),
        (_file(_document("a")), "expected name, shape and dtype"),
        (_file(_document([1, [], "float32"])), "describes tensor 1"),
        (_file(_document(["a", [], "object"])), "of 'object', expected one of float32, int64"),
        (_file(_document(["a", [], []])), "expected one of float32, int64"),
        (_file(_document(["a", 3, "float32"])), "expected at most 8 whole numbers"),
        (_file(_document(["a", [True], "float32"])), "expected at most 8 whole numbers"),
        (_file(_document(["a", [1] * 9, "float32"])), "expected at most 8 whole numbers"),
        (_file(_document(["a", [-1], "float32"])), "expected sides of 0 to"),
        (_file(_document(["a", [0, 10**30], "float32"])), "expected sides of 0 to"),
        (_file(_document(["a", [5000, 4001], "float32"])), "describes 20005000 entries"),
        (_file(_document(["a", [10**7], "float32"], ["b", [10**7 + 1], "int64"])), "describes 20000001 entries"),
        (_file(_document(*[["a", [1], "float32"]] * 2)), "names a tensor twice"),
        (_file(gaps=[0, 0], values=[1]), "gaps holds 2 numbers, expected 1"),
        (_file(gaps=[0], values=[1, 2]), "gaps holds 1 numbers, expected 2"),
        (_file(gaps=[], values=[1]), "gaps holds 0 numbers, expected 1"),
        (_file(gaps=[0] * 5, values=[1] * 5), "values holds 5 numbers, expected 4 at most"),
        (_file(gaps=[4], values=[1]), "gaps lead to entry 4, expected one of 4"),
        (_file(gaps=[0, 3], values=[1, 1]), "gaps lead to entry 4, expected one of 4"),
        (_file(gaps=[255, 255, 255, 255, 127], values=[1]), "gaps lead to entry 34359738367"),
        (_file(gaps=[128] * 5 + [0], values=[1]), "a number of 6 bytes, expected 5 at most"),
        (_file(gaps=[128], values=[1]), "ends within a number"),
        (_file(_document(["a", [2], "int64"]), gaps=[1]), "gaps holds 1 numbers, expected 2"),
    ],
)
def test_a_file_that_does_not_add_up_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unpack(content)


def _archive(**entries: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(f"{name}.npy", data)
    return content.getvalue()


def _npy(array: np.ndarray[Any, Any], shape: str | None = None) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    if shape is None:
        return content.getvalue()
    header = content.getvalue()[:128].replace(b"(4,)", shape.encode()).replace(b" " * (len(shape) - 4), b"", 1)
    return header + content.getvalue()[128:]


HEADER = _npy(np.frombuffer(json.dumps(_document(["a", [4], "float32"])).encode(), np.uint8))
GAPS, VALUES = _npy(np.zeros(4, np.uint8)), _npy(np.ones(4, "<f4"))


def test_the_parts_of_the_refused_archives_are_sound() -> None:
    assert unpack(_archive(header=HEADER, gaps=GAPS, values=VALUES))["a"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_archive(header=HEADER, gaps=GAPS), "holds 2 entries"),
        (_archive(header=HEADER, gaps=GAPS, values=VALUES, more=GAPS), "holds 4 entries"),
        (_archive(header=HEADER, gaps=GAPS, valves=VALUES), "expected header.npy, gaps.npy, values.npy"),
        (_archive(header=HEADER, gaps=GAPS, values=b"no array"), "values cannot be read as an array"),
        (_archive(header=HEADER, gaps=GAPS, values=_npy(np.ones(4))), "values is an array of <f8"),
        (_archive(header=HEADER, gaps=GAPS, values=_npy(np.ones((2, 2), "<f4"))), r"values is an array .* \(2, 2\)"),
        (_archive(header=HEADER, gaps=GAPS, values=_npy(np.array([{}] * 4))), r"values is an array of \|O"),
        (_archive(header=HEADER, gaps=GAPS, values=VALUES[:-1]), "15 bytes"),
        (_archive(header=HEADER, gaps=GAPS, values=_npy(np.ones(4, "<f4"), "(999999999999,)")), "shape .999999999999,"),
        (_archive(header=HEADER, gaps=_npy(np.zeros(1 << 20, np.uint8)), values=VALUES), "holds 1048576 numbers"),
        (_archive(header=_npy(np.zeros(2 << 20, np.uint8)), gaps=GAPS, values=VALUES), "header has 2097280 bytes"),
        (_archive(header=HEADER, gaps=GAPS, values=VALUES)[:-30], "cannot be read"),
        (_archive(header=HEADER, gaps=GAPS, values=VALUES).replace(b"\x08\x00", b"\x63\x00"), "cannot be read"),
    ],
)
def test_an_archive_of_other_things_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unpack(content)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_file_is_refused_or_means_the_same(place: int, change: int) -> None:
    state = {"a": torch.tensor([0.0, 1.5, 0.0, -2.0]), "b": torch.tensor([3, 900])}
    content = bytearray(pack(state))
    content[place % len(content)] ^= change

    try:
        held = unpack(bytes(content))
    except ValueError:
        return
    assert all(np.array_equal(held[name], tensor.numpy()) for name, tensor in state.items())


def test_a_file_that_lies_about_its_sizes_is_not_inflated() -> None:
    size = 64 << 20
    content = _archive(header=HEADER, gaps=GAPS, values=b"\x00" * size)
    content = content.replace(size.to_bytes(4, "little"), len(VALUES).to_bytes(4, "little"))

    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="cannot be read"):
            unpack(content)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_higher_limit_can_be_asked_for_and_a_lower_one() -> None:
    content = pack({"a": torch.eye(2)})

    assert unpack(content, max_entries=4)["a"].tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="describes 4 entries, expected 3 at most"):
        unpack(content, max_entries=3)


def test_a_file_that_is_missing_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / "packed.npz")


def test_pytorch_does_without_what_is_left_out() -> None:
    network = dense()

    fresh = Cnn(network.channels, network.hidden)
    fresh.load_state_dict({name: torch.from_numpy(array) for name, array in unpack(pack(network.state)).items()})

    assert all(
        torch.equal(value, network.state[name]) for name, value in fresh.state_dict().items() if "num_" not in name
    )
