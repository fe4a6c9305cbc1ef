"""Tiny data sets as clients send them: three classes of RGB images, 12 rows by 10 columns."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.contract.uploads import UploadedFile

CLASSES = 3
Arrays = dict[str, NDArray[Any]]


def arrays(train: int = 30, test: int = 9, size: tuple[int, ...] = (12, 10, 3), **changes: NDArray[Any]) -> Arrays:
    """Each class has a brightness of its own, so that there is something to learn."""
    generator = np.random.default_rng(0)
    found: Arrays = {}
    for half, count in (("train", train), ("test", test)):
        labels = np.arange(count) % CLASSES
        noise = generator.integers(0, 60, (count, *size))
        found[f"{half}_images"] = (noise + 90 * labels.reshape(-1, *[1] * len(size))).astype(np.uint8)
        found[f"{half}_labels"] = labels.astype(np.uint8)
    return found | changes


def npz(content: Mapping[str, NDArray[Any]], *, compressed: bool = False) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, allow_pickle=False, **content)
    return out.getvalue()


def idx(array: NDArray[Any]) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def idx_files(content: Arrays, *, gzipped: bool = False) -> dict[str, bytes]:
    packed = {name: idx(array) for name, array in content.items()}
    return {name: gzip.compress(data) for name, data in packed.items()} if gzipped else packed


def image(pixels: NDArray[np.uint8], format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()


def zipped(entries: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue()


def folders(content: Arrays, names: str = "abc") -> dict[str, bytes]:
    """By path, in class folders."""
    return {
        f"{half}/{names[label]}/{number:03}.png": image(pixels)
        for half in ("train", "test")
        for number, (pixels, label) in enumerate(zip(content[f"{half}_images"], content[f"{half}_labels"], strict=True))
    }


def uploaded(folder: Path, content: bytes | Mapping[str, bytes]) -> tuple[Path, list[UploadedFile]]:
    """The file as it lies in the store, and what is in it."""
    files = content if isinstance(content, Mapping) else {"file": content}
    path = folder / "upload"
    path.write_bytes(b"".join(files.values()))
    return path, [UploadedFile.model_validate({"name": name, "size": len(data)}) for name, data in files.items()]
