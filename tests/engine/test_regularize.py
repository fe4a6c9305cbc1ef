from __future__ import annotations

import pytest
import torch
from torch import nn

from app.contract.spec import L1Penalty
from worker.engine.model import Cnn
from worker.engine.regularize import penalty

BETA = L1Penalty(penalty="l1", strength=0.5)


def test_l1_of_a_few_weights_by_hand() -> None:
    weights = [nn.Parameter(torch.tensor([1.0, -2.0, 0.0])), nn.Parameter(torch.tensor([[-0.5]]))]

    term = penalty(BETA, weights)
    term.backward()  # type: ignore[no-untyped-call]

    assert term.item() == 0.5 * 3.5
    assert weights[0].grad is not None
    assert weights[0].grad.tolist() == [0.5, -0.5, 0.0]


def test_l1_is_over_all_parameters_and_no_buffer() -> None:
    network = Cnn((4, 4, 8), 16)
    network(torch.rand(8, 1, 28, 28))  # gives BatchNorm's running statistics values

    by_loop = sum(abs(value) for p in network.parameters() for value in p.flatten().tolist())

    assert penalty(BETA, network.parameters()).item() == pytest.approx(0.5 * by_loop, rel=1e-5)


def test_no_regularization_is_zero() -> None:
    assert penalty(None, [nn.Parameter(torch.ones(3))]).item() == 0.0
