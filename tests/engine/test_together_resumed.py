"""Members that are trained together go on from what was kept of them, together or alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.engine.conftest import Listener
from tests.engine.optimizers import OPTIMIZERS
from tests.engine.together import (
    MODEL,
    NEAR,
    Keeping,
    Power,
    agree,
    alone,
    apart,
    copied,
    course,
    examples,
    going_on,
    half_masked,
    interrupted,
    member,
    same_bits,
    told,
)
from tests.specs import Document
from worker.engine import device
from worker.engine.errors import InvalidCheckpoint
from worker.engine.model import fresh
from worker.engine.progress import Progress
from worker.engine.resume import load
from worker.engine.together import Member, train_together
from worker.engine.train import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("step", [1, 3, 4, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_it_goes_on_from_any_step_to_the_same_bits(step: int, masked: bool, tmp_path: Path) -> None:
    def members() -> list[Member]:
        masks = [half_masked(seed) if masked else None for seed in range(3)]
        return [member(course(seed, {"penalty": "l1"}), masks[seed], torch.float32) for seed in range(3)]

    whole, cut, data = members(), members(), examples(dtype=torch.float32)
    train_together(whole, data)
    kept = interrupted(cut, data, step, tmp_path)

    resumed = going_on(cut, kept, fresh(MODEL, 7))
    train_together(resumed, data)

    for ours, theirs in zip(resumed, whole, strict=True):
        assert isinstance(ours.observer, Listener)
        assert [done for done, _, _ in ours.observer.steps] == list(range(step + 1, 7))
        assert same_bits(ours.network, theirs.network)
        assert told(ours.progress) == told(theirs.progress)
        assert ours.progress.steps == theirs.progress.steps


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_one_member_can_go_on_alone(optimizer: Document, tmp_path: Path) -> None:
    """What is kept of a member is what its training alone would have kept. Alone, tensors lie otherwise in memory."""
    members, data = [member(course(seed, optimizer=optimizer)) for seed in range(2)], examples()
    others = copied(members)
    state = interrupted(members, data, 4, tmp_path)[1]

    network = fresh(MODEL, 7).double()
    device.place(network, torch.device("cpu"))
    train(network, data, members[1].course, state.progress, Listener(), resumed=state)

    alone(others[1:], data)
    assert apart(network, others[1].network) < NEAR


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_some_that_were_alone_can_go_on_together(optimizer: Document, tmp_path: Path) -> None:
    members, data, kept = [member(course(seed, optimizer=optimizer)) for seed in range(2)], examples(), []
    others = copied(members)
    for each in members:
        device.place(each.network, torch.device("cpu"))
        keeping = Keeping(tmp_path / "kept.pt", 4)
        with pytest.raises(Power):
            alone([each], data, keeping)
        kept.append(load(keeping.path))

    resumed = going_on(members, kept, fresh(MODEL, 7).double())
    train_together(resumed, data)

    alone(others, data)
    agree(resumed, others)


def test_some_of_them_can_go_on_together(tmp_path: Path) -> None:
    members, data = [member(course(seed)) for seed in range(3)], examples()
    others = copied(members)
    kept = interrupted(members, data, 4, tmp_path)

    resumed = going_on(members[1:], kept[1:], fresh(MODEL, 7).double())
    train_together(resumed, data)

    alone(others[1:], data)
    agree(resumed, others[1:])


def test_states_of_other_steps_and_networks_are_refused(tmp_path: Path) -> None:
    members, data, like = [member(course(seed)) for seed in range(2)], examples(), fresh(MODEL, 7).double()
    first, second = going_on(members, interrupted(members, data, 1, tmp_path), like)
    assert second.resumed is not None

    for other in (members[1], replace(second, resumed=replace(second.resumed, step=2))):
        with pytest.raises(ValueError, match="member 1 goes on from another step"):
            train_together([first, other], data)
    second.resumed.network.pop("fc1.weight")
    with pytest.raises(InvalidCheckpoint, match="member 1 is of another network"):
        train_together([first, second], data)


def test_nothing_of_the_progress_before_is_lost() -> None:
    members = [Member(fresh(MODEL, 0).double(), course(0, name="fine_tuning"), Progress(steps=40))]

    train_together(members, examples())

    assert members[0].progress.steps == 46
    assert [each.course for each in members[0].progress.history] == ["fine_tuning"] * 2
