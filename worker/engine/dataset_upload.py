"""Reads an uploaded data set and trusts nothing in it, as a program of its own (see `apart`):
`python -m worker.engine.dataset_upload`.

Sizes are known and within bounds before anything of that size is made, and what is inflated is counted while it comes,
whatever a header says of it. No name in an archive becomes a path.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.contract import patterns
from app.contract.datasets import MAX_IMAGES, MAX_VALUES, DatasetPart
from app.contract.network import MOST_CLASSES, MOST_SIDE
from app.contract.uploads import DatasetImportSpec, UploadedFile
from worker.engine import apart, dataset_file
from worker.engine.apart import Limits
from worker.engine.dataset_file import NAMES, About, Bytes, Content, Labels, facts_of, refuse_images
from worker.engine.errors import InvalidDataset

CPU_SECONDS, WALL_SECONDS = 600, 800
MEMORY_BYTES = (512 << 20) + 4 * MAX_VALUES
"""The images, turned and on their way to the file, and a zip's directory."""

FILE_BYTES = MAX_VALUES + 4 * MAX_IMAGES + (1 << 20)
MAX_ENTRIES = MAX_IMAGES + 10_000
"""Of a zip: folders have their own."""

MAX_IMAGE_BYTES = 1 << 20
"""Of one PNG or JPEG file. Its pixels take 12 kB at most."""

MAX_INFLATED = 4 << 30
"""Of all of them."""

_MODES = ("L", "RGB")
_ENCRYPTED = 0x1
_GZIP = b"\x1f\x8b"
_UNPRINTABLE = re.compile(f"[{patterns.UNPRINTABLE}]")
_OBJECT = re.compile(r":? <[^<>]* at 0x[0-9a-f]+>")
_IMAGE_PATH = re.compile(r"(train|test)/([^/]{1,128})/[^/]{1,128}\.(?:png|jpe?g)", re.IGNORECASE)
_LAYOUT = "expected train/CLASS/NAME.png (or .jpg) and test/CLASS/NAME.png"


def read_apart(spec: DatasetImportSpec, upload: Path, target: Path, check: Callable[[], None]) -> None:
    """Read and check an uploaded data set in another process, and have it written to `target`. Raises
    `InvalidDataset`, `OutOfMemory` or `DiskFull`, or what `check` raises, which is asked all the while."""
    files = json.dumps([file.model_dump() for file in spec.files])
    limits = Limits(CPU_SECONDS, WALL_SECONDS, MEMORY_BYTES, FILE_BYTES)
    apart.run("worker.engine.dataset_upload", [str(upload), str(target), files], limits, check, InvalidDataset)


def read_upload(upload: Path, files: Sequence[UploadedFile]) -> Content:
    """The data set in the upload, in which the files lie one after the other. Raises `InvalidDataset`."""
    parts, at = {}, 0
    for file in files:
        parts[file.name] = (at, file.size)
        at += file.size
    (train_images, train_labels, test_images, test_labels), about = (
        _idx(upload, parts) if "file" not in parts else _archive(upload)
    )
    facts = facts_of((train_images, train_labels, test_images, test_labels))
    kept = np.uint8 if facts.classes <= 256 else np.uint16
    return Content((train_images, train_labels.astype(kept), test_images, test_labels.astype(kept)), about)


# IDX


def _idx(upload: Path, parts: Mapping[DatasetPart, tuple[int, int]]) -> Content:
    with _part(upload, *parts["train_images"]) as stream:
        train_images = _idx_images("train_images", stream, MAX_VALUES)
    with _part(upload, *parts["test_images"]) as stream:
        test_images = _idx_images("test_images", stream, MAX_VALUES - train_images.size)
    with _part(upload, *parts["train_labels"]) as stream:
        train_labels = _idx_labels("train_labels", stream)
    with _part(upload, *parts["test_labels"]) as stream:
        test_labels = _idx_labels("test_labels", stream)
    return Content((train_images, train_labels, test_images, test_labels), About(format="idx"))


@contextmanager
def _part(upload: Path, start: int, size: int) -> Iterator[IO[bytes]]:
    """A part of the upload, unpacked when it is gzipped."""
    with io.BufferedReader(_Slice(upload, start, size)) as part:
        yield cast(IO[bytes], gzip.GzipFile(fileobj=part)) if part.peek(2)[:2] == _GZIP else part


class _Slice(io.RawIOBase):
    """So many bytes of a file, from there on."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._file, self._left = path.open("rb"), size
        self._file.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read = self._file.readinto(memoryview(buffer)[: self._left])
        self._left -= read
        return read

    def close(self) -> None:
        self._file.close()
        super().close()


def _idx_images(name: str, stream: IO[bytes], left: int) -> Bytes:
    shape = _idx_shape(name, stream, (3, 4))
    refuse_images(name, _planes(name, shape), left)
    return _turned(_filled(name, stream, shape, np.dtype(np.uint8)))


def _idx_labels(name: str, stream: IO[bytes]) -> Labels:
    shape = _idx_shape(name, stream, (1,))
    _refuse_labels(name, shape)
    return _filled(name, stream, shape, np.dtype(np.uint8))


def _idx_shape(name: str, stream: IO[bytes], dimensions: Sequence[int]) -> tuple[int, ...]:
    magic = _read(name, stream, 4)
    known = [bytes([0, 0, 8, each]) for each in dimensions]
    if magic not in known:
        raise InvalidDataset(
            f"{name} begins with {magic.hex() or 'nothing'}, expected {' or '.join(each.hex() for each in known)}, as "
            "an IDX file of bytes does"
        )
    header = _read(name, stream, 4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise InvalidDataset(f"{name} ends in its header")
    return struct.unpack(f">{magic[3]}I", header)


# Zips: of arrays, and of folders


def _archive(upload: Path) -> Content:
    try:
        archive = zipfile.ZipFile(upload)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise InvalidDataset(f"it cannot be read as a zip, which an .npz is too: {error}") from error
    with archive:
        entries = archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise InvalidDataset(f"the zip has {len(entries)} entries, expected {MAX_ENTRIES} at most")
        for entry in entries:
            _refuse_odd(entry)
        if len({entry.filename for entry in entries}) < len(entries):
            raise InvalidDataset("the zip holds an entry twice")
        arrays = any(entry.filename.endswith(".npy") for entry in entries)
        return _npz(archive) if arrays else _folders(archive)


def _refuse_odd(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    if name.startswith("/") or "\\" in name or ".." in name.split("/") or _UNPRINTABLE.search(name):
        raise InvalidDataset(f"the zip holds {name[:64]!r}, expected plain relative names")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise InvalidDataset(f"{name[:64]!r} in the zip is a link, expected a file")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & _ENCRYPTED:
        raise InvalidDataset(f"{name[:64]!r} in the zip is encrypted or packed, expected stored or deflated")


def _npz(archive: zipfile.ZipFile) -> Content:
    found = [entry.filename for entry in archive.infolist()]
    if sorted(found) != sorted(f"{name}.npy" for name in NAMES):
        raise InvalidDataset(f"the .npz holds {', '.join(found)[:200]}, expected the arrays {', '.join(NAMES)}")
    train_images = _npy_images(archive, "train_images", MAX_VALUES)
    test_images = _npy_images(archive, "test_images", MAX_VALUES - train_images.size)
    train_labels, test_labels = (_npy_labels(archive, name) for name in ("train_labels", "test_labels"))
    return Content((train_images, train_labels, test_images, test_labels), About(format="npz"))


def _npy_images(archive: zipfile.ZipFile, name: str, left: int) -> Bytes:
    with _opened(archive, archive.getinfo(f"{name}.npy")) as stream:
        shape, dtype = _npy_header(name, stream)
        if dtype != np.uint8:
            raise InvalidDataset(f"{name} has type {dtype}, expected uint8")
        refuse_images(name, _planes(name, shape), left)
        return _turned(_filled(name, stream, shape, dtype))


def _npy_labels(archive: zipfile.ZipFile, name: str) -> Labels:
    with _opened(archive, archive.getinfo(f"{name}.npy")) as stream:
        shape, dtype = _npy_header(name, stream)
        if dtype.kind not in "iu":
            raise InvalidDataset(f"{name} has type {dtype}, expected whole numbers")
        _refuse_labels(name, shape)
        return _filled(name, stream, shape, dtype)


def _npy_header(name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)
        # Other versions may have a header of 4 GB.
        found = np.lib.format.read_array_header_1_0(stream) if version == (1, 0) else None
    except MemoryError:
        raise
    except Exception as error:  # numpy parses the header as Python source, and a broken one fails in whatever way
        raise InvalidDataset(f"{name} cannot be read as an array: {_reason(error)}") from error
    if found is None:
        raise InvalidDataset(f"{name} is of version {version} of the .npy format, expected (1, 0)")
    shape, fortran, dtype = found
    if fortran and len(shape) > 1:
        raise InvalidDataset(f"{name} is in Fortran's order, expected numpy.ascontiguousarray of it")
    return shape, dtype


class _Images(NamedTuple):
    """The image files of one half, sorted by class and name."""

    entries: list[zipfile.ZipInfo]
    classes: list[str]


def _folders(archive: zipfile.ZipFile) -> Content:
    halves = _halves(archive)
    names = sorted(set(halves["train"].classes))
    if len(names) > MOST_CLASSES:
        raise InvalidDataset(f"train/ has {len(names)} classes, expected {MOST_CLASSES} at most")
    if unknown := sorted(set(halves["test"].classes) - set(names)):
        raise InvalidDataset(f"test/{unknown[0]} is a class that train/ has no folder of")
    decoder = _Decoder(archive)
    train_images = decoder.decoded("train", halves["train"].entries, MAX_VALUES)
    test_images = decoder.decoded("test", halves["test"].entries, MAX_VALUES - train_images.size)
    numbers = {name: number for number, name in enumerate(names)}
    train_labels, test_labels = (
        np.array([numbers[name] for name in halves[half].classes], np.uint16) for half in ("train", "test")
    )
    about = About(format="images", class_names=tuple(names))
    return Content((train_images, train_labels, test_images, test_labels), about)


def _halves(archive: zipfile.ZipFile) -> dict[str, _Images]:
    found: dict[str, list[tuple[str, zipfile.ZipInfo]]] = {"train": [], "test": []}
    for entry in archive.infolist():
        path = entry.filename
        if entry.is_dir() or path.startswith("__MACOSX/") or path.rpartition("/")[2].startswith("."):
            continue
        matched = _IMAGE_PATH.fullmatch(path)
        if matched is None or matched[1] not in found:
            raise InvalidDataset(f"the zip holds {path[:200]!r}: {_LAYOUT}")
        found[matched[1]].append((matched[2], entry))
    for half, members in found.items():
        if not members:
            raise InvalidDataset(f"the zip has no image in {half}/: {_LAYOUT}")
        members.sort(key=lambda member: (member[0], member[1].filename))
    return {
        half: _Images([entry for _, entry in members], [name for name, _ in members]) for half, members in found.items()
    }


class _Decoder:
    """Turns image files into pixels; the first of all says what all must be like."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive, self._inflated = archive, 0
        self._like: tuple[str, tuple[int, ...]] | None = None

    def decoded(self, half: str, entries: Sequence[zipfile.ZipInfo], left: int) -> Bytes:
        first = self._planes_of(entries[0])
        shape = (len(entries), *first.shape)
        refuse_images(f"{half}/", shape, left)
        images = np.empty(shape, np.uint8)
        for index, entry in enumerate(entries):
            images[index] = first if index == 0 else self._planes_of(entry)
        return images

    def _planes_of(self, entry: zipfile.ZipInfo) -> Bytes:
        """[C, H, W]."""
        planes = _pixels(entry.filename, self._content(entry))
        first, shape = self._like = self._like or (entry.filename, planes.shape)
        if planes.shape != shape:
            raise InvalidDataset(
                f"{entry.filename} has {'×'.join(map(str, planes.shape))} (channels, height, width), expected "
                f"{'×'.join(map(str, shape))} as {first} has"
            )
        return planes

    def _content(self, entry: zipfile.ZipInfo) -> bytes:
        with _opened(self._archive, entry) as stream:
            content = _read(entry.filename, stream, MAX_IMAGE_BYTES + 1)
        self._inflated += len(content)
        if len(content) > MAX_IMAGE_BYTES:
            raise InvalidDataset(f"{entry.filename} has more than {MAX_IMAGE_BYTES} bytes, expected a small image")
        if self._inflated > MAX_INFLATED:
            raise InvalidDataset(f"the images of the zip come to more than {MAX_INFLATED} bytes")
        return content


def _pixels(name: str, content: bytes) -> Bytes:
    """[C, H, W] of a PNG or JPEG file. Size and mode are looked at before a pixel is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                _refuse_other_image(name, image)
                pixels = np.asarray(image)
    except (InvalidDataset, MemoryError):
        raise
    except Exception as error:  # of a damaged image, whatever the decoder trips over
        raise InvalidDataset(f"{name} cannot be read as PNG or JPEG: {_reason(error)}") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _refuse_other_image(name: str, image: Image.Image) -> None:
    if max(image.size) > MOST_SIDE:
        raise InvalidDataset(
            f"{name} has {image.height}×{image.width} pixels, expected {MOST_SIDE} at most in height and width"
        )
    if image.mode not in _MODES:
        raise InvalidDataset(f"{name} is of mode {image.mode}, expected 8 bits grey (L) or RGB")
    if getattr(image, "n_frames", 1) != 1:
        raise InvalidDataset(f"{name} holds more than one image")


# What all have in common


def _planes(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """[N, H, W] or [N, H, W, C] as [N, C, H, W]. Raises `InvalidDataset`, with the shape as it was sent."""
    if len(shape) == 3:
        return (shape[0], 1, *shape[1:])
    if len(shape) != 4 or shape[3] not in (1, 3):
        hint = ": move the channels to the end" if len(shape) == 4 and shape[1] in (1, 3) else ""
        raise InvalidDataset(
            f"{name} has shape {list(shape)}, expected [N, height, width, channels] with 1 or 3 channels, or "
            f"[N, height, width]{hint}"
        )
    return (shape[0], shape[3], shape[1], shape[2])


def _turned(images: Bytes) -> Bytes:
    return images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _refuse_labels(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 1 or not 1 <= shape[0] <= MAX_IMAGES:
        raise InvalidDataset(f"{name} has shape {shape}, expected 1 to {MAX_IMAGES} labels in one dimension")


def _filled(name: str, stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array of which the stream has exactly the bytes."""
    array = np.empty(shape, dtype)
    buffer = array.reshape(-1).view(np.uint8).data
    at = 0
    while at < len(buffer) and (piece := _read(name, stream, min(len(buffer) - at, 1 << 20))):
        buffer[at : at + len(piece)] = piece
        at += len(piece)
    if at < len(buffer):
        raise InvalidDataset(f"{name} ends after {at} bytes of data, expected {len(buffer)} for the shape {shape}")
    if _read(name, stream, 1):
        raise InvalidDataset(f"{name} goes on after the {len(buffer)} bytes of data of the shape {shape}")
    return array


def _reason(error: Exception) -> str:
    """What a library says of a file, without the object of ours that it read from."""
    return _OBJECT.sub("", str(error))[:200]


_DAMAGED = (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, ValueError)
"""What reading a part of a damaged file raises."""


def _opened(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return archive.open(entry)
    except _DAMAGED as error:
        raise InvalidDataset(f"{entry.filename} cannot be read: {error}") from error


def _read(name: str, stream: IO[bytes], most: int) -> bytes:
    try:
        return stream.read(most)
    except _DAMAGED as error:
        raise InvalidDataset(f"{name} cannot be read: {error}") from error


def _main(arguments: list[str]) -> None:
    upload, target, files = arguments
    content = read_upload(Path(upload), [UploadedFile(**each) for each in json.loads(files)])
    dataset_file.write(Path(target), content)


if __name__ == "__main__":
    apart.carry_out(_main, InvalidDataset)
