"""Uploaded data sets: what is taken, in which form ever, and what is refused before it does any harm."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.contract.network import DataShape
from app.contract.uploads import DatasetImportSpec, UploadedFile
from tests.engine.data_sets import arrays, folders, idx, idx_files, image, npz, uploaded, zipped
from worker.engine import data, dataset_file
from worker.engine.data import DatasetStore, digest
from worker.engine.dataset_file import facts_of
from worker.engine.dataset_upload import MAX_IMAGE_BYTES, read_apart, read_upload
from worker.engine.errors import InvalidDataset
from worker.engine.pixels import scaled

RGB = arrays()
GREY = arrays(size=(12, 10))

FORMS: dict[str, tuple[bytes | Mapping[str, bytes], str]] = {
    "npz": (npz(RGB), "npz"),
    "compressed npz": (npz(RGB, compressed=True), "npz"),
    "npz of wide labels": (npz({**RGB, "train_labels": RGB["train_labels"].astype(">i8")}), "npz"),
    "idx": (idx_files(RGB), "idx"),
    "gzipped idx": (idx_files(RGB, gzipped=True), "idx"),
}


@pytest.mark.parametrize(("content", "format"), FORMS.values(), ids=FORMS)
def test_the_same_data_set_in_each_form_has_the_same_digest(
    tmp_path: Path, content: bytes | Mapping[str, bytes], format: str
) -> None:
    found = read_upload(*uploaded(tmp_path, content))

    expected = read_upload(*uploaded(tmp_path, npz(RGB)))
    assert found.about.format == format
    assert digest(found.arrays) == digest(expected.arrays)
    assert np.array_equal(found.arrays[0], RGB["train_images"].transpose(0, 3, 1, 2))
    facts = facts_of(found.arrays)
    assert facts.shape == DataShape(channels=3, height=12, width=10, classes=3)
    assert (facts.train_images, facts.test_images) == (30, 9)


@pytest.mark.parametrize("content", [RGB, GREY], ids=["rgb", "grey"])
def test_class_folders_are_read_in_the_order_of_their_names(tmp_path: Path, content: dict[str, NDArray[Any]]) -> None:
    entries = folders(content) | {"__MACOSX/x": b"?", "train/a/.DS_Store": b"?", "train/": b""}

    found = read_upload(*uploaded(tmp_path, zipped(dict(reversed(entries.items())))))

    order = np.argsort(content["train_labels"], kind="stable")
    images = content["train_images"][order]
    assert np.array_equal(found.arrays[0], images.transpose(0, 3, 1, 2) if images.ndim == 4 else images[:, None])
    assert found.arrays[1].tolist() == content["train_labels"][order].tolist()
    assert (found.about.format, found.about.class_names) == ("images", ("a", "b", "c"))


def test_jpeg_is_taken_too(tmp_path: Path) -> None:
    entries = {
        f"{half}/{name}/1.jpg": image(GREY["test_images"][0], "JPEG") for half in ("train", "test") for name in "ab"
    }

    assert read_upload(*uploaded(tmp_path, zipped(entries))).arrays[0].shape == (2, 1, 12, 10)


def test_more_than_256_classes_keep_their_labels(tmp_path: Path) -> None:
    labels = np.arange(300)
    content = arrays(300, 300, (8, 8), train_labels=labels, test_labels=labels)

    found = read_upload(*uploaded(tmp_path, npz(content)))

    assert found.arrays[1].tolist() == found.arrays[3].tolist() == labels.tolist()
    assert facts_of(found.arrays).classes == 300


def test_a_data_set_is_kept_and_read_back_to_the_bit(tmp_path: Path) -> None:
    content = read_upload(*uploaded(tmp_path, npz(RGB)))
    path = tmp_path / "dataset.safetensors"
    dataset_file.write(path, content)
    first = path.read_bytes()
    dataset_file.write(path, content)

    store = DatasetStore(None)
    dataset = store.read("job_x", path)

    assert path.read_bytes() == first
    assert dataset_file.read(path).about == content.about
    assert (dataset.name, dataset.sha256) == ("job_x", digest(content.arrays))
    assert dataset.train_images.shape == (30, 3, 12, 10)
    assert float(scaled(dataset.train_images).max()) == RGB["train_images"].max() / np.float32(255)
    assert store.read("job_y", path).train_images is dataset.train_images


def test_a_store_lets_go_of_what_takes_too_much_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in (32, 31, 30)]
    for path in paths:
        dataset_file.write(path, read_upload(*uploaded(tmp_path, npz(arrays(int(path.stem))))))
    store = DatasetStore(None)
    monkeypatch.setattr(data, "KEPT_BYTES", store.read("first", paths[0]).size)
    first, second = (store.read("x", path).train_images for path in paths[:2])

    store.read("third", paths[2])

    assert store.read("second", paths[1]).train_images is second
    assert store.read("first", paths[0]).train_images is not first


def _header(name: str, shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    """An .npy file that has the header alone."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"shape": shape, "fortran_order": False, "descr": descr})
    return out.getvalue()


def _npz_with(name: str, data: bytes) -> bytes:
    whole = zipfile.ZipFile(io.BytesIO(npz(RGB)))
    entries = {entry: whole.read(entry) for entry in whole.namelist()}
    return zipped(entries | {f"{name}.npy": data})


def _objects() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([{}, {}], object), allow_pickle=True)
    return out.getvalue()


def _linked() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        entry = zipfile.ZipInfo("train/a/x.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    return out.getvalue()


def _png_bomb(side: int) -> bytes:
    """A PNG that says to be side×side pixels, and has few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def _frames() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    one, other = (Image.fromarray(GREY["test_images"][index]) for index in (0, 1))
    one.save(out, "PNG", save_all=True, append_images=[other])
    return out.getvalue()


FOLDERS = folders(RGB)
IDX = idx_files(RGB)
BIG = (1 << 20, 64, 64, 3)

WRONG: dict[str, tuple[bytes | Mapping[str, bytes], str]] = {
    # npz
    "a pickle": (_npz_with("train_labels", _objects()), "train_labels has type object, expected whole numbers"),
    "a pickle of images": (_npz_with("train_images", _objects()), "train_images has type object, expected uint8"),
    "floats": (npz({**RGB, "test_images": RGB["test_images"] / 255}), "test_images has type float64, expected uint8"),
    "a shape bomb": (_npz_with("train_images", _header("x", BIG)), "expected 268435456 at most"),
    "a shape bomb of labels": (_npz_with("train_labels", _header("x", (1 << 40,), "<i8")), "expected 1 to 1000000"),
    "a negative shape": (_npz_with("train_images", _header("x", (-1, 12, 10, 3))), "train_images holds no image"),
    "a cut array": (_npz_with("train_images", _header("x", (30, 12, 10, 3))), "ends after 0 bytes of data"),
    "a long array": (_npz_with("train_labels", _header("x", (30,)) + bytes(1 << 20)), "goes on after the 30 bytes"),
    "no array": (_npz_with("train_labels", b"nonsense"), "train_labels cannot be read as an array"),
    "source for a header": (
        _npz_with("train_labels", b"\x93NUMPY\x01\x00" + struct.pack("<H", 20) + b"__import__('os')    "),
        "train_labels cannot be read as an array",
    ),
    "another version": (_npz_with("train_labels", b"\x93NUMPY\x02\x00" + b"\xff" * 99), "of version (2, 0)"),
    "Fortran's order": (
        npz({**RGB, "train_images": np.asfortranarray(RGB["train_images"])}),
        "train_images is in Fortran's order",
    ),
    "another array": (npz({**RGB, "extra": np.zeros(1)}), "expected the arrays train_images, train_labels"),
    "too few labels": (npz({**RGB, "test_labels": RGB["test_labels"][:8]}), "test_labels has shape (8,), expected one"),
    "a negative label": (npz({**RGB, "train_labels": RGB["train_labels"].astype(int) - 1}), "goes from -1 to 1"),
    "a class too many": (npz({**RGB, "train_labels": RGB["train_labels"].astype(int) + 998}), "goes from"),
    "a class without images": (npz({**RGB, "train_labels": RGB["train_labels"] * 2}), "train_labels has no 1"),
    "an unknown class": (npz({**RGB, "test_labels": RGB["test_labels"] + 1}), "test_labels holds 3, expected 0 to 2"),
    "one class": (npz({**RGB, "train_labels": RGB["train_labels"] * 0}), "of 2 to 1000 classes"),
    "two channels": (
        npz({**RGB, "train_images": RGB["train_images"][..., :2]}),
        "train_images has shape [30, 12, 10, 2], expected [N, height, width, channels] with 1 or 3 channels",
    ),
    "channels first": (
        npz({**RGB, "train_images": RGB["train_images"].transpose(0, 3, 1, 2)}),
        "train_images has shape [30, 3, 12, 10], expected [N, height, width, channels] with 1 or 3 channels, or "
        "[N, height, width]: move the channels to the end",
    ),
    "flat images": (
        npz({**RGB, "test_images": RGB["test_images"].reshape(9, -1)}),
        "test_images has shape [9, 360], expected [N, height, width, channels]",
    ),
    "seven rows": (
        npz({**RGB, "train_images": RGB["train_images"][:, :7]}),
        "has images of 3×7×10 (channels, height, width), expected 8 to 64 pixels",
    ),
    "other test images": (
        npz({**RGB, "test_images": RGB["test_images"][:, :9]}),
        "expected 3×12×10 as in train_images",
    ),
    "no image": (npz({**RGB, "test_images": RGB["test_images"][:0]}), "test_images holds no image"),
    # idx
    "another magic": ({**IDX, "train_images": b"\0\0\x0d\x03" + bytes(99)}, "train_images begins with 00000d03"),
    "images for labels": ({**IDX, "test_labels": IDX["test_images"]}, "test_labels begins with 00000804"),
    "a header alone": ({**IDX, "train_labels": b"\0\0\x08\x01\0"}, "train_labels ends in its header"),
    "a cut file": ({**IDX, "train_labels": IDX["train_labels"][:-1]}, "ends after 29 bytes of data, expected 30"),
    "a file with more": ({**IDX, "train_labels": IDX["train_labels"] + b"!"}, "goes on after the 30 bytes"),
    "a count bomb": ({**IDX, "train_images": b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 28, 28)}, "at most"),
    "a gzip bomb": (
        {**IDX, "train_labels": gzip.compress(idx(RGB["train_labels"]) + bytes(50 << 20))},
        "train_labels goes on after the 30 bytes of data",
    ),
    "a broken gzip": ({**IDX, "train_labels": gzip.compress(IDX["train_labels"])[:-9]}, "train_labels cannot be read"),
    # folders
    "no zip": (b"PK\x03\x04" + bytes(100), "cannot be read as a zip"),
    "an absolute name": (zipped({"/train/a/x.png": b""}), "holds '/train/a/x.png', expected plain relative names"),
    "a way up": (zipped({"train/../../x.png": b""}), "expected plain relative names"),
    "a backslash": (zipped({"train\\a\\x.png": b""}), "expected plain relative names"),
    "a control character": (zipped({"train/a\n/x.png": b""}), "expected plain relative names"),
    "a turn of direction": (zipped({"train/a\u202eb/x.png": b""}), "expected plain relative names"),
    "a link": (_linked(), "is a link, expected a file"),
    "another layout": (zipped({"mine/train/a/x.png": b""}), "expected train/CLASS/NAME.png"),
    "another file": (zipped({**FOLDERS, "train/a/x.txt": b""}), "holds 'train/a/x.txt'"),
    "another packing": (zipped(FOLDERS, zipfile.ZIP_LZMA), "is encrypted or packed"),
    "no test": (zipped({n: d for n, d in FOLDERS.items() if n.startswith("train")}), "no image in test/"),
    "a class in test alone": (zipped({**FOLDERS, "test/d/x.png": FOLDERS["test/a/000.png"]}), "test/d is a class"),
    "no image in a file": (
        zipped({**FOLDERS, "train/a/x.png": b"GIF89a"}),
        "train/a/x.png cannot be read as PNG or JPEG: cannot identify image file",
    ),
    "half an image": (zipped({**FOLDERS, "train/a/x.png": FOLDERS["train/a/000.png"][:60]}), "cannot be read as PNG"),
    "a gif": (zipped({**FOLDERS, "train/a/x.png": image(GREY["test_images"][0], "GIF")}), "cannot be read as PNG"),
    "another size": (
        zipped({**FOLDERS, "train/c/x.png": image(np.zeros((13, 10, 3), np.uint8))}),
        "train/c/x.png has 3×13×10 (channels, height, width), expected 3×12×10 as train/a/000.png has",
    ),
    "a grey one": (zipped({**FOLDERS, "train/c/x.png": image(GREY["test_images"][0])}), "train/c/x.png has 1×12×10"),
    "transparency": (
        zipped({**FOLDERS, "train/c/x.png": image(np.zeros((12, 10, 4), np.uint8))}),
        "train/c/x.png is of mode RGBA, expected 8 bits grey (L) or RGB",
    ),
    "an image bomb": (zipped({**FOLDERS, "train/c/x.png": _png_bomb(9_000)}), "train/c/x.png has 9000×9000 pixels"),
    "a huge image bomb": (zipped({**FOLDERS, "train/c/x.png": _png_bomb(60_000)}), "train/c/x.png cannot be read"),
    "an animation": (zipped({**FOLDERS, "train/c/x.png": _frames()}), "train/c/x.png holds more than one image"),
    "a zip bomb": (
        zipped({**FOLDERS, "train/c/x.png": FOLDERS["train/a/000.png"] + bytes(50 << 20)}),
        f"train/c/x.png has more than {MAX_IMAGE_BYTES} bytes",
    ),
}


@pytest.mark.parametrize(("content", "said"), WRONG.values(), ids=WRONG)
def test_what_is_no_data_set_is_refused_by_name_and_takes_little_memory(
    tmp_path: Path, content: bytes | Mapping[str, bytes], said: str
) -> None:
    path, files = uploaded(tmp_path, content)
    tracemalloc.start()

    with pytest.raises(InvalidDataset) as caught:
        read_upload(path, files)

    assert said in str(caught.value)
    assert "0x" not in str(caught.value)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_holds_a_name_twice_is_refused(tmp_path: Path) -> None:
    content = io.BytesIO(zipped(FOLDERS))
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr("train/a/000.png", b"another")

    with pytest.raises(InvalidDataset, match="holds an entry twice"):
        read_upload(*uploaded(tmp_path, content.getvalue()))


def test_a_zip_is_measured_by_what_comes_out_of_it(tmp_path: Path) -> None:
    """And not by what its directory says: here, that there are ten bytes."""
    content = bytearray(zipped({**FOLDERS, "train/c/x.png": FOLDERS["train/a/000.png"] + bytes(5 << 20)}))
    at = content.rindex(b"train/c/x.png") - 46
    content[at + 24 : at + 28] = struct.pack("<I", 10)

    with pytest.raises(InvalidDataset, match=r"train/c/x\.png cannot be read"):
        read_upload(*uploaded(tmp_path, bytes(content)))


def _spec(files: list[UploadedFile]) -> DatasetImportSpec:
    return DatasetImportSpec(kind="dataset", files=tuple(files), size=1, sha256="0" * 64)


def test_the_process_that_reads_it_does_without_pytorch() -> None:
    script = "import sys, worker.engine.dataset_upload; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("content", [npz(RGB), zipped(FOLDERS)], ids=["npz", "folders"])
def test_another_process_writes_it_in_the_place_of_one_that_was_cut_short(content: bytes, tmp_path: Path) -> None:
    path, files = uploaded(tmp_path, content)
    (tmp_path / "attempt").mkdir()
    target = tmp_path / "attempt" / "dataset.safetensors"
    target.write_bytes(b"cut short")

    read_apart(_spec(files), path, target, lambda: None)

    arrays, about = dataset_file.read(target)
    expected, expected_about = read_upload(path, files)
    assert all(map(np.array_equal, arrays, expected))
    assert about == expected_about


def test_what_another_process_refuses_reaches_whoever_asked(tmp_path: Path) -> None:
    path, files = uploaded(tmp_path, npz({**RGB, "extra": np.zeros(1)}))

    with pytest.raises(InvalidDataset, match=r"the uploaded file: the \.npz holds"):
        read_apart(_spec(files), path, tmp_path / "dataset.safetensors", lambda: None)
    assert not (tmp_path / "dataset.safetensors").exists()
