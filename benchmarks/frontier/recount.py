"""Counts and measures the kept networks again, with numpy alone: `python -m benchmarks.frontier.recount FOLDER`.

FOLDER has MNIST's test files, `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, each perhaps gzipped, below
`MNIST/raw`. Each network is read out of its packed file, so that neither PyTorch nor anything that trained it has a
say in the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.engine.idx import read_images, read_labels
from worker.engine.unpack import unpack

MODELS = Path(__file__).parent / "models"
TEST_IMAGES = 10_000
BATCH = 250
NEAR_TIES = 2
"""Images that may come out otherwise than in the receipt: float32 sums depend on their order, and some logits tie."""

State = Mapping[str, NDArray[Any]]
Images = NDArray[np.float32]


def logits(state: State, images: Images) -> NDArray[np.float32]:
    """[N, 10] of a compact network (see `worker/engine/compact.py`) for images [N, 28, 28] from 0 to 1."""
    features = images[:, None]
    for layer, pooled in (("layer1.0", False), ("layer2.0", True), ("layer3.0", True)):
        features = np.maximum(_convolved(features, state[f"{layer}.weight"], state[f"{layer}.bias"]), 0)
        features = _pooled(features) if pooled else features
    flat = features.reshape(len(features), -1)
    if "fc1.inputs" in state:
        flat = flat[:, state["fc1.inputs"]]
    hidden = flat @ state["fc1.weight"].T + state["fc1.bias"]
    found: NDArray[np.float32] = hidden @ state["fc2.weight"].T + state["fc2.bias"]
    return found


def _convolved(images: Images, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Images:
    """A 'same' convolution: [N, C, H, W] and [D, C, K, K] → [N, D, H, W]."""
    margin = weight.shape[-1] // 2
    padded = np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    summed = np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3))).astype(np.float32)
    return np.moveaxis(summed + bias, -1, 1)


def _pooled(images: Images) -> Images:
    """The largest of each 2×2: [N, C, H, W] → [N, C, H/2, W/2]."""
    count, channels, height, width = images.shape
    pooled: Images = images.reshape(count, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))
    return pooled


def nonzero(state: State) -> int:
    """Of all weights and biases: BatchNorm is folded into them. `fc1.inputs` are places, no weights."""
    return sum(int(np.count_nonzero(tensor)) for tensor in state.values() if tensor.dtype == np.float32)


def wrong(state: State, images: Images, labels: NDArray[np.uint8]) -> int:
    starts = range(0, len(labels), BATCH)
    found = [logits(state, images[start : start + BATCH]).argmax(axis=1) for start in starts]
    return int((np.concatenate(found) != labels).sum())


def _test_set(folder: Path) -> tuple[Images, NDArray[np.uint8]]:
    names = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    plain = [folder / name for name in names]
    paths = [path if path.is_file() else path.with_name(f"{path.name}.gz") for path in plain]
    return read_images(paths[0], TEST_IMAGES).astype(np.float32) / np.float32(255), read_labels(paths[1], TEST_IMAGES)


class Row(NamedTuple):
    name: str
    nonzero: int
    bytes: int
    wrong: int
    receipt: dict[str, Any]

    @property
    def agrees(self) -> bool:
        counts = (self.receipt["packed_nonzero"], self.receipt["packed_bytes"])
        return (self.nonzero, self.bytes) == counts and abs(self.wrong - int(self.receipt["wrong"])) <= NEAR_TIES

    def __str__(self) -> str:
        receipt = self.receipt
        told = f"{receipt['packed_nonzero']} non-zero, {receipt['packed_bytes']} bytes, {receipt['wrong']} wrong"
        return (
            f"{self.name:<28} {self.nonzero:>8,} {receipt['parameters'] / self.nonzero:>6.0f}× {self.bytes:>8,} "
            f"{self.wrong:>6} {self.wrong / receipt['images']:>7.2%}   "
            f"{'agrees' if self.agrees else 'DIFFERS: ' + told}"
        )


def recount(models: Path, images: Images, labels: NDArray[np.uint8]) -> Iterator[Row]:
    """What each packed network in a folder is and does, beside what its receipt says."""
    for path in sorted(models.glob("*.npz")):
        state, receipt = unpack(path), json.loads(path.with_suffix(".json").read_text())
        yield Row(path.stem, nonzero(state), path.stat().st_size, wrong(state, images, labels), receipt)


def main() -> int:
    parser = argparse.ArgumentParser(description="Count and measure the networks in benchmarks/frontier/models again.")
    parser.add_argument("data", type=Path, help="folder with MNIST/raw")
    images, labels = _test_set(parser.parse_args().data / "MNIST" / "raw")
    print(f"{'network':<28} {'non-zero':>8} {'factor':>7} {'bytes':>8} {'wrong':>6} {'error':>7}   receipt")
    agree = True
    for row in recount(MODELS, images, labels):
        print(row, flush=True)
        agree &= row.agrees
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
