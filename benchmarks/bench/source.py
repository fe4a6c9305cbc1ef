"""The plain alternative of everything about training: the classroom experiment's own way, written as it has it."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from benchmarks.bench.measuring import Setting
from worker.engine.digits import load_digits

BATCH_SIZE = 100
LEARNING_RATE = 0.001

Pictures = Dataset[tuple[Tensor, int]]


class Network(nn.Module):
    """In the source's order: normalized, rectified, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 16, kernel_size=5, padding=2), nn.BatchNorm2d(16), nn.ReLU())
        self.layer2 = nn.Sequential(
            nn.Conv2d(16, 16, kernel_size=3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.layer3 = nn.Sequential(
            nn.Conv2d(16, 32, kernel_size=3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.fc1 = nn.Linear(7 * 7 * 32, 300)
        self.fc2 = nn.Linear(300, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer3(self.layer2(self.layer1(x)))
        out = out.reshape(out.size(0), -1)
        logits: Tensor = self.fc2(self.fc1(out))
        return logits


class _Digits(Dataset[tuple[Tensor, int]]):
    """What torchvision's MNIST does for an item, for where there is no MNIST."""

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.uint8], transform: Callable[[Image.Image], Tensor]
    ) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


@contextmanager
def files(setting: Setting) -> Iterator[Path | None]:
    """A folder with MNIST as torchvision wants it, which is plain; None without MNIST."""
    if setting.data_dir is None:
        yield None
        return
    with TemporaryDirectory(prefix="bench-") as folder:
        raw = Path(folder) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for path in (setting.data_dir / "MNIST" / "raw").iterdir():
            is_packed = path.suffix == ".gz"
            name = path.stem if is_packed else path.name
            with gzip.open(path) if is_packed else path.open("rb") as file, (raw / name).open("wb") as plain:
                shutil.copyfileobj(file, plain)
        yield Path(folder)


@cache
def pictures(folder: Path | None, count: int | None = None) -> Pictures:
    """The training images, the first `count` of them; MNIST as torchvision reads it, item by item through ToTensor."""
    # Seconds, for it brings PyTorch's compilers along: not for who only imports this file.
    from torchvision import datasets, transforms

    transform = transforms.ToTensor()
    found: Pictures = (
        _Digits(*load_digits(1437, 360)[:2], transform)
        if folder is None
        else datasets.MNIST(folder, train=True, transform=transform)
    )
    return found if count is None else Subset(found, range(count))


def train(
    model: nn.Module, data: Pictures, epochs: int = 1, l1: float | None = None, device: str = "cpu"
) -> tuple[list[float], list[float]]:
    """The loss and the accuracy of every step."""
    loader: DataLoader[Any] = DataLoader(data, batch_size=BATCH_SIZE, shuffle=True)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    losses, accuracies = [], []
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            outputs = model(images)
            loss = criterion(outputs, labels)
            if l1 is not None:
                loss = loss + l1 * _l1(model)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            predicted = torch.max(outputs.data, 1)[1]
            accuracies.append((predicted == labels).sum().item() / labels.size(0))
    return losses, accuracies


def _l1(model: nn.Module) -> Tensor:
    criterion = nn.L1Loss(reduction="sum")
    total = torch.zeros(())
    for parameter in model.parameters():
        total = total + criterion(parameter, torch.zeros_like(parameter))
    return total


def distribution(weights: Sequence[float], bins: int) -> tuple[list[float], list[int]]:
    """Centres, and how many weights each is nearest to: every weight against every centre."""
    low, high = min(weights), max(weights)
    centres = [low + (high - low) * place / (bins - 1) for place in range(bins)]
    counts = [0] * bins
    for weight in weights:
        nearest, least = 0, abs(weight - centres[0])
        for place in range(1, bins):
            distance = abs(weight - centres[place])
            if distance < least:
                nearest, least = place, distance
        counts[nearest] += 1
    return centres, counts


def distribution_by_rows(weights: NDArray[np.float32], bins: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The same with numpy for the inner loop."""
    centres = np.linspace(float(weights.min()), float(weights.max()), bins)  # of float32 it would step in float32
    counts = np.zeros(bins, dtype=np.int64)
    for weight in weights:
        counts[np.argmin(np.abs(centres - weight))] += 1
    return centres, counts
