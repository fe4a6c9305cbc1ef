"""Own kernels are tried before a GPU's first job. What they compute on a GPU, `test_cuda.py` checks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from worker.engine import kernels, trial
from worker.engine.seeding import reproducible

ON_CPU = torch.device("cpu")
FEW = 2
"""What many members are for, other kernels, a CPU does not have."""
MORE_THAN_FIT = 10**9
"""Whose images are more bytes than a process can address."""


@pytest.fixture
def trusted() -> Iterator[None]:
    yield
    kernels.TRUSTED.set()


def test_what_computes_as_pytorch_does_stands_the_trial() -> None:
    with reproducible(ON_CPU):
        assert 0 < trial.difference(ON_CPU, FEW) < trial.TOLERANCE / 2


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    ("device", "tolerance", "told"),
    [
        ("cpu", trial.TOLERANCE, []),
        ("cpu", 0.0, ["own kernels compute something else"]),
        # It computes nothing, so that whoever asks for a number gets an error.
        ("meta", trial.TOLERANCE, ["own kernels do not run"]),
    ],
)
def test_kernels_are_used_when_they_have_stood_the_trial_alone(
    device: str, tolerance: float, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert trial.try_kernels(torch.device(device), members=FEW, tolerance=tolerance)

    assert [record.getMessage().partition(" on this device")[0] for record in caplog.records] == told
    assert kernels.at_hand() == (told == [])


@pytest.mark.usefixtures("trusted")
def test_kernels_for_whose_trial_there_was_no_memory_are_used_once_they_have_stood_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not trial.try_kernels(ON_CPU, members=MORE_THAN_FIT)
    assert not kernels.at_hand()

    assert trial.try_kernels(ON_CPU, members=FEW)

    assert [record.getMessage().partition(" on this device")[0] for record in caplog.records] == [
        "no memory to try own kernels"
    ]
    assert kernels.at_hand()


@pytest.mark.parametrize("wrong", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["layer1.0.weight", "layer3.1.bias", "fc2.bias"])
def test_one_wrong_number_of_fifty_is_noticed(name: str, wrong: float) -> None:
    exact = {each: torch.linspace(-1, 1, 50).double() for each in ("layer1.0.weight", "layer3.1.bias", "fc2.bias")}
    ours = {each: values.float() for each, values in exact.items()}
    assert trial.apart(ours, exact) < 1e-6

    ours[name][-1] *= wrong

    assert trial.apart(ours, exact) > trial.TOLERANCE


def test_the_rounding_that_the_bias_before_batchnorm_has_for_a_gradient_does_not_count() -> None:
    exact = {"layer1.0.bias": torch.tensor([1e-17]), "fc1.bias": torch.ones(1)}
    assert trial.apart({"layer1.0.bias": torch.tensor([1e-6]), "fc1.bias": torch.ones(1)}, exact) == 0
