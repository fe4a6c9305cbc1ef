"""Packed weights: the non-zeros of a state and where they are, in one small file. `unpack` has format and reader.

Each array of an .npz costs some 250 bytes whatever it holds, so that all tensors share one stream.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.unpack import DTYPES, FORMAT, LONGEST, VERSION

_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip can say."""

Arrays = Mapping[str, NDArray[np.float32 | np.int64]]


def pack(state: Mapping[str, Tensor]) -> bytes:
    """A state dict on the CPU, whole or compact, as `packed.npz`, without `num_batches_tracked`.

    The same state gives the same bytes with the same zlib. Raises ValueError for a tensor that is neither float32 nor
    int64, and for integers that do not ascend from zero or more: indices do.
    """
    arrays = {name: t.detach().numpy() for name, t in state.items() if not name.endswith(".num_batches_tracked")}
    for name, array in arrays.items():
        if array.dtype.name not in DTYPES:
            raise ValueError(f"{name} has type {array.dtype.name}, expected one of {', '.join(DTYPES)}")
    floats = _end_to_end(arrays, "float32")
    positions = np.flatnonzero(floats)
    numbers = np.concatenate([_differences(arrays), np.diff(positions, prepend=-1) - 1])
    return _npz(
        header=np.frombuffer(_header(arrays), np.uint8),
        gaps=_leb128(numbers),
        values=floats[positions].astype("<f4"),
    )


def _end_to_end(arrays: Arrays, dtype: str) -> NDArray[np.float32 | np.int64]:
    flat = [array.ravel() for array in arrays.values() if array.dtype.name == dtype]
    return np.concatenate([np.zeros(0, dtype), *flat])


def _differences(arrays: Arrays) -> NDArray[np.int64]:
    """Of every int64 entry from the one before it in its tensor, or from zero."""
    found = [np.zeros(0, np.int64)]
    for name, array in arrays.items():
        if array.dtype.name == "int64":
            entries = array.ravel().astype(np.int64)
            differences = entries - np.concatenate([np.zeros(1, np.int64), entries])[:-1]
            if ((differences < 0) | (differences >= LONGEST)).any():
                raise ValueError(f"{name} does not ascend from zero or more, or leaps, expected indices")
            found.append(differences)
    return np.concatenate(found)


def _header(arrays: Arrays) -> bytes:
    tensors = [[name, list(array.shape), array.dtype.name] for name, array in arrays.items()]
    return json.dumps({"format": FORMAT, "version": VERSION, "tensors": tensors}, separators=(",", ":")).encode()


def _leb128(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Seven bits a byte, low ones first, the high bit set in all bytes of a number but its last."""
    longest = max(1, -(-int(numbers.max(initial=0)).bit_length() // 7))
    shifted = numbers[:, None] >> (7 * np.arange(longest))
    follows = shifted[:, 1:] > 0
    coded = (shifted & 127).astype(np.uint8)
    coded[:, :-1] |= follows.astype(np.uint8) << 7
    used = np.concatenate([np.ones((len(numbers), 1), bool), follows], axis=1)
    packed: NDArray[np.uint8] = coded[used]
    return packed


def _npz(**arrays: NDArray[np.uint8 | np.float32]) -> bytes:
    """As numpy.savez_compressed, without the time of day."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=_DATE)
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3  # Unix, wherever it is written
            file = io.BytesIO()
            np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
            archive.writestr(entry, file.getvalue())
    return content.getvalue()
