"""Members to train together, and the same to train alone. Three steps an epoch, the last of them smaller."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from app.contract.datasets import DatasetName
from app.contract.spec import ModelSpec
from app.contract.training import FineTuningSpec, Regularization
from tests.engine.conftest import Listener
from tests.engine.few import ALL
from tests.specs import Document
from worker.engine.model import fresh
from worker.engine.observer import Observer
from worker.engine.pixels import scaled
from worker.engine.placed import Placed
from worker.engine.plan import Course
from worker.engine.progress import Progress
from worker.engine.pruning import Mask
from worker.engine.resume import TrainingState, load
from worker.engine.seeding import generator
from worker.engine.together import Member, train_together
from worker.engine.train import Examples, train

DIGITS = ALL.load(DatasetName.DIGITS)
MODEL = ModelSpec(channels=(2, 2, 4), hidden=8)

NEAR = 1e-6
"""In double precision, after a few steps of parameters that are about 0.1 and move by 0.01."""


def examples(count: int = 24, validation: int = 0, dtype: torch.dtype = torch.float64) -> Examples:
    """Double precision tells wrong arithmetic from rounding, which Adam blows up: it divides by what it divides."""
    whole = Placed().examples(DIGITS, 0, torch.device("cpu"))
    images, labels = scaled(whole.images[: count + validation]).to(dtype), whole.labels[: count + validation]
    return Examples(images[:count], labels[:count], images[count:], labels[count:])


def course(seed: int, penalty: Document | None = None, name: Any = "training", **settings: object) -> Course:
    """Settings of its own by its number, and a strength."""
    given = {"seed": seed, "epochs": 2, "batch_size": 10, "learning_rate": 0.002 * (seed + 1), **settings}
    made = None
    if penalty is not None:
        made = TypeAdapter[Regularization](Regularization).validate_python({"strength": 0.01 * (seed + 1), **penalty})
    return Course(FineTuningSpec.model_validate(given, strict=False), made, name)


def member(course: Course, mask: Mask | None = None, dtype: torch.dtype = torch.float64) -> Member:
    network = fresh(MODEL, course.settings.seed).to(dtype)
    if mask is not None:
        network.load_state_dict(mask.apply(network.state_dict()))
    return Member(network, course, Progress(mask=mask))


def half_masked(seed: int, model: ModelSpec = MODEL) -> Mask:
    pick = generator(seed, "test")
    return Mask({name: torch.rand(p.shape, generator=pick) < 0.5 for name, p in fresh(model, 0).named_parameters()})


def copied(members: Sequence[Member]) -> list[Member]:
    return [Member(copy.deepcopy(each.network), each.course, Progress(mask=each.progress.mask)) for each in members]


def alone(members: Sequence[Member], given: Examples, observer: Observer | None = None) -> None:
    for each in members:
        train(each.network, given, each.course, each.progress, observer or Listener())


def apart(ours: nn.Module, theirs: nn.Module) -> float:
    """The largest difference between any two numbers of theirs."""
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


def told(progress: Progress) -> list[Document]:
    return [each.model_dump(exclude={"seconds"}) for each in progress.history]


class Power(Exception):
    """The power went."""


class Keeping(Listener):
    """Keeps in a file what a training could go on from, at one step, where the power goes."""

    def __init__(self, path: Path, step: int) -> None:
        super().__init__()
        self.path, self._step = path, step

    def checkpoint(self, state: Callable[[], TrainingState], epoch_ended: bool) -> None:
        if self.steps[-1][0] == self._step:
            self.path.write_bytes(state().to_bytes())
            raise Power


def interrupted(members: Sequence[Member], data: Examples, step: int, folder: Path) -> list[TrainingState]:
    """What was kept of each when the power went."""
    paths = [folder / f"{number}.pt" for number in range(len(members))]
    cut = [replace(each, observer=Keeping(path, step)) for each, path in zip(members, paths, strict=True)]
    assert [type(each) for each in train_together(cut, data)] == [Power] * len(cut)
    return [load(path) for path in paths]


def going_on(members: Sequence[Member], kept: Sequence[TrainingState], like: nn.Module) -> list[Member]:
    """In another process: networks anew, and the progress that was kept."""
    return [
        Member(copy.deepcopy(like), each.course, state.progress, Listener(), resumed=state)
        for each, state in zip(members, kept, strict=True)
    ]


def same_bits(ours: nn.Module, theirs: nn.Module) -> bool:
    pairs: list[tuple[Tensor, Tensor]] = list(
        zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    )
    return all(torch.equal(one, other) for one, other in pairs)


def agree(together: list[Member], apart_from: list[Member], near: float = NEAR) -> None:
    """Networks, histories and steps are those of the others, to `near`."""
    for ours, theirs in zip(together, apart_from, strict=True):
        assert apart(ours.network, theirs.network) < near
        for mine, other in zip(told(ours.progress), told(theirs.progress), strict=True):
            assert mine.keys() == other.keys()
            for name, value in mine.items():
                assert value == (pytest.approx(other[name], rel=near) if isinstance(value, float) else other[name])
        assert ours.progress.steps == theirs.progress.steps
