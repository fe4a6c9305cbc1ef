"""The safetensors header: what the library writes is read, and no bytes bring anything but the one refusal."""

from __future__ import annotations

import contextlib
import io
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from app.contract.checkpoint import TensorFacts
from app.contract.header import MAX_HEADER_BYTES, BadHeader, begins_header, read_header

WORDS = {"float32": "F32", "int64": "I64", "float16": "F16", "uint8": "U8", "bool": "BOOL", "float64": "F64"}

arrays = st.tuples(st.sampled_from(sorted(WORDS)), st.lists(st.integers(0, 3), max_size=4)).map(
    lambda drawn: np.zeros(drawn[1], drawn[0])
)
# Of no tensors with metadata, the library (0.8.0) writes what it cannot read itself.
states = st.dictionaries(
    st.text(min_size=1).filter(lambda name: name != "__metadata__"), arrays, min_size=1, max_size=5
)


def _read(content: bytes) -> dict[str, TensorFacts]:
    return read_header(io.BytesIO(content), len(content))


@given(states, st.none() | st.dictionaries(st.text(), st.text(), max_size=3))
def test_what_the_library_writes_is_read(state: dict[str, Any], metadata: dict[str, str] | None) -> None:
    content = save(state, metadata)

    assert begins_header(content[:16], len(content))
    assert _read(content) == {name: TensorFacts(WORDS[str(each.dtype)], each.shape) for name, each in state.items()}


SAMPLE = save({"a": np.zeros((2, 3), np.float32), "b": np.zeros((), np.int64)}, {"format": "pt"})


@given(st.data())
def test_damage_brings_the_refusal_and_nothing_else(data: st.DataObject) -> None:
    content = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])

    with contextlib.suppress(BadHeader):
        assert len(_read(cut)) <= 2


@given(st.binary())
def test_no_bytes_at_all_bring_anything_else(content: bytes) -> None:
    with pytest.raises(BadHeader):
        _read(content)


def _file(header: str | bytes, data: bytes = b"") -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return len(text).to_bytes(8, "little") + text + data


def _entry(**changes: Any) -> str:
    return json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes})


TWICE = '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {}}'
OVERLAP = {"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}
OVERLAP |= {"b": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}

WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cut off"),
    "a length beyond the end": (b"\xff" * 8 + b"{}", "cut off"),
    "a huge header": (_file(b" " * (MAX_HEADER_BYTES + 1)), "more than"),
    "no JSON": (_file("{'a': 1}"), "no JSON"),
    "not UTF-8": (_file(b'{"\xff": 1}'), "no JSON"),
    "deep": (_file("[" * 100_000), "no JSON"),
    "an endless number": (_file('{"a": ' + "9" * 100_000 + "}"), "no JSON"),
    "a list": (_file("[]"), "no JSON object"),
    "a name twice": (_file(TWICE, bytes(8)), "gives a name twice"),
    "a field twice": (_file(_entry()[:-2] + ', "dtype": "F16"}}', bytes(8)), "gives a name twice"),
    "not a number": (_file('{"a": NaN}'), "JSON does not know"),
    "odd metadata": (_file('{"__metadata__": {"a": 1}}'), "__metadata__"),
    "an entry that is none": (_file('{"a": 5}'), "has not the fields"),
    "a field too many": (_file(_entry(extra=1), bytes(8)), "has not the fields"),
    "an unknown type": (_file(_entry(dtype="F31"), bytes(8)), "'F31', which is none of"),
    "a negative shape": (_file(_entry(shape=[-2, -1]), bytes(8)), "shape of tensor 'a'"),
    "a shape of truths": (_file(_entry(shape=[True, 2]), bytes(8)), "shape of tensor 'a'"),
    "a huge number": (_file(_entry(shape=[10**30, 0]), bytes(8)), "shape of tensor 'a'"),
    "many dimensions": (_file(_entry(shape=[1] * 8 + [2]), bytes(8)), "shape of tensor 'a'"),
    "one offset": (_file(_entry(data_offsets=[8]), bytes(8)), "no two counts"),
    "offsets backwards": (_file(_entry(data_offsets=[8, 0]), bytes(8)), "-8 bytes of data"),
    "a shape bomb": (_file(_entry(shape=[10**6, 10**6]), bytes(8)), "takes 4000000000000"),
    "a gap": (_file(_entry(data_offsets=[4, 12]), bytes(12)), "begins at 4, expected 0"),
    "an overlap": (_file(json.dumps(OVERLAP), bytes(8)), "begins at 4, expected 8"),
    "bytes missing": (_file(_entry(), bytes(7)), "has 7 bytes of data, and its tensors take 8"),
    "bytes too many": (_file(_entry(), bytes(9)), "has 9 bytes of data, and its tensors take 8"),
}


@pytest.mark.parametrize(("content", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(content: bytes, said: str) -> None:
    with pytest.raises(BadHeader, match=re.escape(said)) as caught:
        _read(content)

    assert len(str(caught.value)) < 400
