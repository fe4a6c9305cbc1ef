"""Reads the IDX files of MNIST and its relatives, and trusts nothing in them.

An IDX file is a big-endian header (magic number, then one 32-bit count a dimension) and raw unsigned bytes.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_IMAGES, _LABELS = 0x00000803, 0x00000801


class BrokenIdx(ValueError):
    """A file that is not the IDX file that it should be; the message names it and what is wrong."""


def read_images(path: Path, count: int, side: int = 28) -> NDArray[np.uint8]:
    """Exactly `count` images: [count, side, side]."""
    return _read(path, _IMAGES, (count, side, side))


def read_labels(path: Path, count: int, classes: int = 10) -> NDArray[np.uint8]:
    """Exactly `count` labels, each below `classes`."""
    labels = _read(path, _LABELS, (count,))
    if labels.size and int(labels.max()) >= classes:
        raise BrokenIdx(f"{path.name}: holds the label {int(labels.max())}; labels go from 0 to {classes - 1}")
    return labels


def _read(path: Path, magic: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    header = struct.pack(f">{1 + len(shape)}I", magic, *shape)
    size = len(header) + int(np.prod(shape))
    content = _read_at_most(path, size + 1)
    _refuse_other_header(path, content, header)
    if len(content) < size:
        raise BrokenIdx(f"{path.name}: truncated: {len(content)} bytes where {size} belong")
    if len(content) > size:
        raise BrokenIdx(f"{path.name}: bytes left over after the {size} that belong to it")
    return np.frombuffer(content, dtype=np.uint8, offset=len(header)).reshape(shape)


def _read_at_most(path: Path, limit: int) -> bytes:
    """Never more than `limit` bytes in memory, however much a gzip file would unpack to."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(limit)
    except (OSError, EOFError, zlib.error) as error:
        raise BrokenIdx(f"{path.name}: cannot be read: {error}") from error


def _refuse_other_header(path: Path, content: bytes, header: bytes) -> None:
    if content[:4] != header[:4]:
        raise BrokenIdx(f"{path.name}: magic number {content[:4].hex() or 'missing'} where {header[:4].hex()} belongs")
    if content[: len(header)] != header:
        raise BrokenIdx(f"{path.name}: says that it holds {_counts(content[: len(header)])}, not {_counts(header)}")


def _counts(header: bytes) -> str:
    fields: tuple[Any, ...] = struct.unpack(f">{len(header[4:]) // 4}I", header[4 : len(header) // 4 * 4])
    return "×".join(str(field) for field in fields) or "no counts"
