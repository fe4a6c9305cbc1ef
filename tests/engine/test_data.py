from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.contract.datasets import DATASETS, DatasetName
from worker.engine.data import DatasetStore
from worker.engine.errors import DatasetUnavailable
from worker.engine.idx import BrokenIdx, read_images, read_labels
from worker.engine.pixels import scaled

DIGITS = DatasetStore(None).load(DatasetName.DIGITS)


@pytest.fixture(scope="module")
def scikit_learns() -> Any:
    # Seconds, which only the process of these tests is to spend.
    from sklearn.datasets import load_digits

    return load_digits()


def test_digits_are_scikit_learns_split_by_class(scikit_learns: Any) -> None:
    labels = scikit_learns.target

    together = torch.cat([DIGITS.train_labels, DIGITS.test_labels])
    assert (len(DIGITS.train_labels), len(DIGITS.test_labels)) == (1_437, 360)
    assert torch.bincount(together).tolist() == np.bincount(labels).tolist()
    shares = torch.bincount(DIGITS.test_labels) / torch.bincount(together)
    assert torch.all((shares - 360 / 1_797).abs() < 0.005)


def test_digits_are_28_by_28_and_bytes_from_0_to_255() -> None:
    for images in (DIGITS.train_images, DIGITS.test_images):
        assert images.shape[1:] == (1, 28, 28)
        assert images.dtype is torch.uint8
        assert (int(images.min()), int(images.max())) == (0, 255)


def test_enlarging_keeps_the_brightness_of_each_image(scikit_learns: Any) -> None:
    small = torch.tensor(scikit_learns.images, dtype=torch.float32).mean(dim=(1, 2)) / 16
    large = scaled(torch.cat([DIGITS.train_images, DIGITS.test_images])).mean(dim=(1, 2, 3))

    assert torch.allclose(small.sort().values, large.sort().values, atol=0.02)


def test_digits_are_the_same_bytes_everywhere() -> None:
    assert DIGITS.sha256 == DatasetStore(None).load(DatasetName.DIGITS).sha256
    assert DIGITS.sha256 == "03aef80bc0432a8f2bc37d32daf317c1f2071c4c1bd025b98ffc1ba5d4130100"


def test_no_image_is_in_both_parts() -> None:
    trained = {image.numpy().tobytes() for image in DIGITS.train_images}

    assert not [image for image in DIGITS.test_images if image.numpy().tobytes() in trained]


# --- files --------------------------------------------------------------------------------------------------------


def _idx(magic: int, shape: tuple[int, ...], values: bytes | None = None) -> bytes:
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + (values or bytes(int(np.prod(shape))))


Write = Callable[[str, bytes], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with MNIST's four files, all zeros but the last training label."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(_idx(0x803, (60_000, 28, 28)))
    (raw / "train-labels-idx1-ubyte").write_bytes(_idx(0x801, (60_000,), bytes(59_999) + b"\x09"))
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(0x803, (10_000, 28, 28)), 1))
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(0x801, (10_000,)), 1))
    return tmp_path


def test_files_are_read_plain_and_gzipped(folder: Path) -> None:
    mnist = DatasetStore(folder).load(DatasetName.MNIST)

    assert mnist.train_images.shape == (60_000, 1, 28, 28)
    assert mnist.test_images.shape == (10_000, 1, 28, 28)
    assert int(mnist.train_labels[-1]) == 9
    assert mnist.train_labels.dtype is torch.int64


def test_the_digest_is_of_the_content_not_of_the_files(folder: Path) -> None:
    before = DatasetStore(folder).load(DatasetName.MNIST).sha256
    packed = folder / "MNIST/raw/t10k-labels-idx1-ubyte.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()

    assert DatasetStore(folder).load(DatasetName.MNIST).sha256 == before


def test_a_missing_file_is_named_with_its_folder(folder: Path) -> None:
    (folder / "MNIST/raw/train-labels-idx1-ubyte").unlink()

    with pytest.raises(DatasetUnavailable, match="lacks train-labels-idx1-ubyte") as error:
        DatasetStore(folder).load(DatasetName.MNIST)
    assert str(folder / "MNIST/raw") in str(error.value)


@pytest.mark.parametrize("name", [DatasetName.FASHION_MNIST, DatasetName.KMNIST])
def test_each_data_set_has_a_folder_of_its_own(folder: Path, name: DatasetName) -> None:
    with pytest.raises(DatasetUnavailable, match=str(DATASETS[name].folder)):
        DatasetStore(folder).load(name)


def test_without_a_folder_the_way_out_is_told() -> None:
    with pytest.raises(DatasetUnavailable, match="choose the data set 'digits'"):
        DatasetStore(None).load(DatasetName.MNIST)


def test_a_folder_that_cannot_be_read_is_told_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(DatasetUnavailable, match=r"cannot be read \(File name too long\)"):
        DatasetStore(tmp_path / ("x" * 300)).load(DatasetName.MNIST)


def test_a_broken_file_is_named(folder: Path) -> None:
    (folder / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"<html>not found</html>")

    with pytest.raises(DatasetUnavailable, match="train-images-idx3-ubyte: magic number 3c68746d"):
        DatasetStore(folder).load(DatasetName.MNIST)


def test_a_file_mended_meanwhile_is_read(folder: Path) -> None:
    labels = folder / "MNIST/raw/train-labels-idx1-ubyte"
    content = labels.read_bytes()
    labels.write_bytes(content[:-1])
    store = DatasetStore(folder)
    with pytest.raises(DatasetUnavailable):
        store.load(DatasetName.MNIST)

    labels.write_bytes(content)

    assert len(store.load(DatasetName.MNIST).train_labels) == 60_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "magic number missing"),
        (_idx(0x803, (3,)), "magic number 00000803 where 00000801"),
        (_idx(0x801, (4,)), "says that it holds 4, not 3"),
        (_idx(0x801, (3,))[:-1], "truncated: 10 bytes where 11 belong"),
        (_idx(0x801, (3,)) + b"x", "bytes left over"),
        (_idx(0x801, (3,), b"\x00\x0a\x01"), "holds the label 10"),
    ],
)
def test_labels_that_are_not_what_they_should_be(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "labels"
    file.write_bytes(content)

    with pytest.raises(BrokenIdx, match=words):
        read_labels(file, 3)


def test_a_gzip_file_that_breaks_off_or_unpacks_to_too_much(tmp_path: Path) -> None:
    packed = gzip.compress(_idx(0x803, (2, 28, 28)))
    (tmp_path / "cut.gz").write_bytes(packed[:-10])
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(_idx(0x803, (2, 28, 28)) + bytes(10_000_000)))

    with pytest.raises(BrokenIdx, match=r"cut\.gz: cannot be read"):
        read_images(tmp_path / "cut.gz", 2)
    with pytest.raises(BrokenIdx, match="bytes left over"):
        read_images(tmp_path / "bomb.gz", 2)
