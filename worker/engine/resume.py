"""The state of a training between two of its steps: enough to go on, perhaps elsewhere, with the same bits."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.contract.report import Accuracy, EpochMetrics, Resume
from worker.engine.errors import InvalidCheckpoint
from worker.engine.progress import Progress
from worker.engine.pruning import Mask

VERSION = 3


@dataclass(frozen=True)
class Origin:
    """What a state tells of where it comes from; the training itself does not look at it."""

    dataset_sha256: str = ""
    resumes: tuple[Resume, ...] = ()
    device_name: str = ""
    threads: int = 1
    torch: str = ""


@dataclass(frozen=True, eq=False)
class Best:
    """The best epoch of a course so far, by the validation images."""

    epoch: int
    correct: int
    network: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class TrainingState:
    """Everything that the next step depends on. Tensors may lie on any device; `load` brings them to the CPU."""

    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    shuffle: Tensor
    """The shuffling generator's state before it drew the order of this epoch."""
    epoch: int
    """Whole epochs done."""
    step: int
    """Steps done within the next one."""
    sums: dict[str, float]
    """Over the images of those steps."""
    seconds: float
    """That those steps took."""
    progress: Progress
    """`stage` says of which course this is the state."""
    best: Best | None = None
    origin: Origin = Origin()

    def to_bytes(self) -> bytes:
        document = {field.name: getattr(self, field.name) for field in fields(self)}
        document["best"] = self.best and vars(self.best)
        document["progress"] = {
            **vars(self.progress),
            "mask": self.progress.mask and dict(self.progress.mask),
            "accuracies": {at: each.model_dump(mode="json") for at, each in self.progress.accuracies.items()},
            "history": [each.model_dump(mode="json") for each in self.progress.history],
        }
        resumes = [each.model_dump(mode="json") for each in self.origin.resumes]
        document["origin"] = {**vars(self.origin), "resumes": resumes}
        buffer = io.BytesIO()
        torch.save({"version": VERSION, **document}, buffer)
        return buffer.getvalue()


@dataclass(frozen=True)
class Recovery:
    """Which attempt this is, and the checkpoints of those before it, the newest first."""

    attempt: int = 1
    checkpoints: tuple[Path, ...] = ()

    def latest(self, dataset_sha256: str) -> TrainingState | None:
        """The newest checkpoint that can be read and saw the same data; None starts over."""
        for path in self.checkpoints:
            try:
                state = load(path)
            except InvalidCheckpoint:
                continue
            if state.origin.dataset_sha256 == dataset_sha256:
                return state
        return None

    def resumes(self, state: TrainingState | None) -> tuple[Resume, ...]:
        """What the receipt tells once this attempt has gone on from `state`."""
        if state is None:
            return ()
        origin, step = state.origin, state.progress.steps
        last = Resume(attempt=self.attempt, step=step, device_name=origin.device_name, torch=origin.torch)
        return (*origin.resumes, last)


def load(path: Path) -> TrainingState:
    """The state in a file of `to_bytes`. Raises InvalidCheckpoint when it is not one."""
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
        if document.pop("version") != VERSION:
            raise InvalidCheckpoint(f"{path.name} is of another version of this service")
        document["best"] = document["best"] and Best(**document["best"])
        document["progress"] = _progress(document["progress"])
        resumes = tuple(Resume(**each) for each in document["origin"]["resumes"])
        document["origin"] = Origin(**{**document["origin"], "resumes": resumes})
        return TrainingState(**document)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidCheckpoint(f"{path.name} is no state of a training: {error}") from error
    except pickle.UnpicklingError as error:
        raise InvalidCheckpoint(f"{path.name} holds more than a state of a training") from error


def _progress(document: dict[str, Any]) -> Progress:
    told = {
        "mask": document["mask"] and Mask(document["mask"]),
        "accuracies": {at: Accuracy(**each) for at, each in document["accuracies"].items()},
        "history": [EpochMetrics(**each) for each in document["history"]],
    }
    return Progress(**{**document, **told})
