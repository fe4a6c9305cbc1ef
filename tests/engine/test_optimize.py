from __future__ import annotations

import pytest
import torch
from torch import nn

from app.contract.training import AdamW, FineTuningSpec, Sgd
from worker.engine.optimize import learning_rate, optimizer

STEPS = 10  # of an epoch


def _rates(**settings: object) -> list[float]:
    spec = FineTuningSpec.model_validate({"epochs": 4, "learning_rate": 0.1, **settings})
    return [learning_rate(spec, step, STEPS) for step in range(spec.epochs * STEPS)]


def test_a_constant_rate_is_the_spec_s() -> None:
    assert set(_rates()) == {0.1}


def test_a_cosine_goes_from_the_spec_s_rate_to_nearly_nothing() -> None:
    rates = _rates(learning_rate_schedule="cosine")

    assert rates[0] == 0.1
    assert rates[20] == pytest.approx(0.05)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.0002


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warm_up_rises_in_equal_steps_to_the_spec_s_rate(schedule: str) -> None:
    rates = _rates(learning_rate_schedule=schedule, warmup_epochs=2)

    assert rates[:20] == pytest.approx([0.1 * step / 20 for step in range(1, 21)])
    assert rates[20] == 0.1
    assert max(rates) == 0.1


def test_a_warm_up_may_take_the_whole_training() -> None:
    assert _rates(learning_rate_schedule="cosine", warmup_epochs=4)[-1] == 0.1


def _step(settings: dict[str, object]) -> float:
    weight = nn.Parameter(torch.tensor([1.0]))
    made = optimizer(FineTuningSpec.model_validate({"learning_rate": 0.1, **settings}), [weight])
    for gradient in (1.0, 0.0):
        weight.grad = torch.tensor([gradient])
        made.step()
    return weight.item()


@pytest.mark.parametrize(
    ("settings", "after_two_steps"),
    [
        ({"optimizer": Sgd(name="sgd", momentum=0)}, 1 - 0.1),
        ({"optimizer": Sgd(name="sgd", momentum=0.5)}, 1 - 0.1 - 0.05),
        ({"optimizer": Sgd(name="sgd", momentum=0.5, nesterov=True)}, 1 - 0.15 - 0.025),
    ],
)
def test_sgd_by_hand(settings: dict[str, object], after_two_steps: float) -> None:
    assert _step(settings) == pytest.approx(after_two_steps, rel=1e-5)


def test_adamw_decays_what_has_no_gradient() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    spec = FineTuningSpec(learning_rate=0.1, optimizer=AdamW(name="adamw", weight_decay=0.5))
    made = optimizer(spec, [weight])
    weight.grad = torch.zeros(1)

    made.step()

    assert weight.item() == pytest.approx(1 - 0.1 * 0.5)
