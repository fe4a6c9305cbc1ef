"""Reads packed weights (`packed.npz`) with nothing but numpy. This file stands alone: copy it where it is needed.

    state = unpack("packed.npz")                                    # name → array
    state = {name: torch.from_numpy(array) for name, array in state.items()}

The format, version 1: an .npz of three one-dimensional arrays.

header  uint8: JSON, {"format": "secateur-packed", "version": 1, "tensors": [[name, shape, dtype], …]}. A dtype is
        float32 or int64.
gaps    uint8: numbers in LEB128 (seven bits a byte, low ones first; the high bit says that another byte follows).
        First every entry of the int64 tensors, in the header's order: each tensor ascends from zero or more, and an
        entry is written as its difference from the one before. Then one number for each non-zero of the float32
        tensors, flattened row by row and put end to end in the header's order: how many zeros lie before it since
        the last non-zero.
values  float32, little-endian: the non-zeros in the same order.

Lossless, except that −0.0 comes back as 0.0, and that `num_batches_tracked`, which evaluation does not need, is not
in it; PyTorch's `load_state_dict` does without when it is given a plain dict.
"""

from __future__ import annotations

import io
import json
import os

import numpy as np
from numpy.typing import NDArray

FORMAT = "secateur-packed"
VERSION = 1
MAX_ENTRIES = 20_000_000
MAX_HEADER = 1 << 20
MAX_DIMENSIONS = 8
DTYPES = ("float32", "int64")

_BYTES = 5
LONGEST = 1 << (7 * _BYTES)
"""Numbers are smaller than this, and have so many bytes at most."""

_ZIP = b"PK\x03\x04"
_NPY_HEADER = 128

Tensors = list[tuple[str, tuple[int, ...], str]]


def unpack(
    source: str | os.PathLike[str] | bytes, *, max_entries: int = MAX_ENTRIES
) -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
    """Every tensor by its name, from a path or from the file's bytes.

    Raises ValueError when it is no such file, is damaged, or describes more than `max_entries` entries; nothing of a
    size that the file merely claims is allocated before that is checked, and nothing in it is executed.
    """
    header, gaps, content = _arrays(source, max_entries)
    tensors = _tensors(header, max_entries)
    values = np.frombuffer(content, "<f4").astype(np.float32, copy=False)
    entries = {dtype: sum(_size(shape) for _, shape, kind in tensors if kind == dtype) for dtype in DTYPES}
    if len(values) > entries["float32"]:
        raise ValueError(f"values holds {len(values)} numbers, expected {entries['float32']} at most")
    numbers = _numbers(gaps, entries["int64"] + len(values))
    integers, positions = numbers[: entries["int64"]], np.cumsum(numbers[entries["int64"] :] + 1) - 1
    if len(positions) and positions[-1] >= entries["float32"]:
        raise ValueError(f"gaps lead to entry {positions[-1]}, expected one of {entries['float32']}")
    floats = np.zeros(entries["float32"], np.float32)
    floats[positions] = values
    return _split(tensors, floats, integers)


def _arrays(source: str | os.PathLike[str] | bytes, max_entries: int) -> tuple[bytes, bytes, bytes]:
    limits = {"header": MAX_HEADER, "gaps": _BYTES * max_entries, "values": 4 * max_entries}
    content = source if isinstance(source, bytes) else _read(source, sum(limits.values()))
    # numpy would take a lone array or a pickle too.
    if not content.startswith(_ZIP):
        raise ValueError("packed weights must be an .npz archive")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            header, gaps, values = _entries(archive, limits)
    # Whatever a broken archive makes the zip and deflate modules raise, which would have to be imported to be named.
    except Exception as error:
        raise ValueError(f"packed weights cannot be read: {error}") from error
    return _data("header", header, "|u1"), _data("gaps", gaps, "|u1"), _data("values", values, "<f4")


def _read(path: str | os.PathLike[str], limit: int) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - no pathlib here
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"packed weights have more than {limit} bytes")
    return content


def _entries(archive: np.lib.npyio.NpzFile, limits: dict[str, int]) -> list[bytes]:
    """Each entry's bytes. What the archive says of their sizes is checked first, and no more than that is inflated."""
    opened = archive.zip
    if opened is None:
        raise ValueError("it is closed")
    listed = opened.infolist()
    if sorted(entry.filename for entry in listed) != sorted(f"{name}.npy" for name in limits):
        raise ValueError(f"it holds {len(listed)} entries, expected {', '.join(f'{name}.npy' for name in limits)}")
    contents = []
    for name, limit in limits.items():
        entry = opened.getinfo(f"{name}.npy")
        if entry.file_size > limit + _NPY_HEADER:
            raise ValueError(f"{name} has {entry.file_size} bytes, expected {limit} at most")
        with opened.open(entry) as file:
            # Without a number it would inflate all there is before it looks at the size.
            contents.append(file.read(entry.file_size))
    return contents


def _data(name: str, content: bytes, dtype: str) -> bytes:
    """The bytes of one .npy array of one dimension."""
    file = io.BytesIO(content)
    try:
        version, (shape, _, found) = np.lib.format.read_magic(file), np.lib.format.read_array_header_1_0(file)
    # numpy parses the header as Python source, and a broken one fails in whatever way that does.
    except Exception as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from error
    data = content[file.tell() :]
    if version != (1, 0) or found.str != dtype or len(shape) != 1 or shape[0] * found.itemsize != len(data):
        raise ValueError(
            f"{name} is an array of {found.str}, shape {shape}, {len(data)} bytes, expected {dtype} of one dimension"
        )
    return data


def _tensors(header: bytes, max_entries: int) -> Tensors:
    try:
        document = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"header is no JSON: {error}") from error
    described = document.get("tensors") if isinstance(document, dict) else None
    if not isinstance(described, list) or (document.get("format"), document.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"header is not of {FORMAT} version {VERSION}")
    tensors = [_tensor(description, max_entries) for description in described]
    if len({name for name, _, _ in tensors}) < len(tensors):
        raise ValueError("header names a tensor twice")
    entries = sum(_size(shape) for _, shape, _ in tensors)
    if entries > max_entries:
        raise ValueError(f"header describes {entries} entries, expected {max_entries} at most (max_entries)")
    return tensors


def _tensor(description: object, max_entries: int) -> tuple[str, tuple[int, ...], str]:
    if not isinstance(description, list) or len(description) != 3:
        raise ValueError(f"header describes a tensor as {description!r:.80}, expected name, shape and dtype")
    name, shape, dtype = description
    if not isinstance(name, str) or dtype not in DTYPES:
        raise ValueError(f"header describes tensor {name!r:.80} of {dtype!r:.80}, expected one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(type(side) is int for side in shape):
        raise ValueError(f"{name:.80} has shape {shape!r:.80}, expected at most {MAX_DIMENSIONS} whole numbers")
    if not all(0 <= side <= max_entries for side in shape):
        raise ValueError(f"{name:.80} has shape {shape!r:.80}, expected sides of 0 to {max_entries}")
    return name, tuple(shape), dtype


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _numbers(gaps: bytes, expected: int) -> NDArray[np.int64]:
    """LEB128 to integers: the first bytes of all, then the second bytes of those that have one, and so on."""
    coded = np.frombuffer(gaps, np.uint8)
    if len(coded) and coded[-1] > 127:
        raise ValueError("gaps ends within a number")
    found = int(np.count_nonzero(coded < 128))
    if found != expected:
        raise ValueError(f"gaps holds {found} numbers, expected {expected}")
    starts = np.flatnonzero(np.concatenate(([True], coded[:-1] < 128)))[:found]
    lengths = np.diff(starts, append=len(coded))
    if lengths.max(initial=0) > _BYTES:
        raise ValueError(f"gaps holds a number of {lengths.max()} bytes, expected {_BYTES} at most")
    numbers = np.zeros(found, np.int64)
    for place in range(int(lengths.max(initial=0))):
        longer = lengths > place
        numbers[longer] |= (coded[starts[longer] + place] & 127).astype(np.int64) << (7 * place)
    return numbers


def _split(
    tensors: Tensors, floats: NDArray[np.float32], integers: NDArray[np.int64]
) -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
    state: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {}
    for name, shape, dtype in tensors:
        size = _size(shape)
        if dtype == "float32":
            state[name], floats = floats[:size].reshape(shape).copy(), floats[size:]
        else:
            state[name], integers = np.cumsum(integers[:size]).reshape(shape), integers[size:]
    return state
