"""The header of a safetensors file, read without its data and without the library, which the API does not have.

Eight bytes of length, little-endian; so many bytes of JSON, {name: {dtype, shape, data_offsets}}; then the data, which
the tensors fill without a gap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, BinaryIO, NoReturn

from app.contract.checkpoint import TensorFacts

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 1 << 20
"""The architecture's own header has two thousand; the rest is room for metadata."""

_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}
_MAX_RANK = 8
_MAX_NUMBER = 1 << 48
_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes an entry, by type."""


class BadHeader(ValueError):
    """The file is not what safetensors writes."""


def begins_header(start: bytes, size: int) -> bool:
    """Whether a file of this size that begins so may be safetensors: a length that fits, then JSON."""
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    return start[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{" and LENGTH_BYTES + length <= size


def read_header(file: BinaryIO, size: int) -> dict[str, TensorFacts]:
    """The tensors of a file of `size` bytes, by name. Raises `BadHeader` or OSError."""
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    data = size - LENGTH_BYTES - length
    if data < 0:
        raise BadHeader("the file ends within its header: it was cut off, or is not safetensors")
    if length > MAX_HEADER_BYTES:
        raise BadHeader(f"the header has {length} bytes, more than the {MAX_HEADER_BYTES} that it may have")
    entries = _parsed(file.read(length))
    _refuse_odd_metadata(entries.pop(_METADATA, {}))
    facts, places = {}, []
    for name, entry in entries.items():
        facts[name], place = _entry(name, entry)
        places.append((*place, name))
    _refuse_gaps(sorted(places), data)
    return facts


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except BadHeader:
        raise
    except (ValueError, RecursionError) as error:
        raise BadHeader("the header is no JSON") from error
    if not isinstance(document, dict):
        raise BadHeader("the header is no JSON object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a name that is given twice, two readers may believe different ones."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadHeader("the header gives a name twice")
    return found


def _refuse_constant(_: str) -> NoReturn:
    raise BadHeader("the header holds a number that JSON does not know")


def _refuse_odd_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadHeader(f"{_METADATA} of the header is no object of texts")


def _entry(name: str, entry: object) -> tuple[TensorFacts, tuple[int, int]]:
    """A tensor's facts, and where in the data it begins and ends."""
    shown = repr(name[:64])
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise BadHeader(f"the header's entry {shown} has not the fields dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise BadHeader(f"tensor {shown} has the type {str(dtype)[:16]!r}, which is none of {', '.join(_SIZES)}")
    if not _are_counts(shape) or len(shape) > _MAX_RANK:
        raise BadHeader(f"the shape of tensor {shown} is no list of at most {_MAX_RANK} counts")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise BadHeader(f"the data_offsets of tensor {shown} are no two counts")
    begin, end = offsets
    if end - begin != math.prod(shape) * _SIZES[dtype]:
        raise BadHeader(
            f"tensor {shown} has {end - begin} bytes of data, and its shape {shape} of {dtype} takes "
            f"{math.prod(shape) * _SIZES[dtype]}"
        )
    return TensorFacts(dtype, tuple(shape)), (begin, end)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < _MAX_NUMBER for each in value)


def _refuse_gaps(places: Sequence[tuple[int, int, str]], data: int) -> None:
    """They must follow each other from the first byte of the data to the last."""
    at = 0
    for begin, end, name in places:
        if begin != at:
            raise BadHeader(f"the data of tensor {name[:64]!r} begins at {begin}, expected {at}")
        at = end
    if at != data:
        raise BadHeader(f"the file has {data} bytes of data, and its tensors take {at}: it was cut off, or added to")
