"""What a spec may ask of a pruning, and where and how it is told what it may not."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from app.contract.explain import FieldError, explain
from app.contract.network import PARAMETER_NAMES, parameter_shapes
from app.contract.pruning import METHODS, ONE_SHOT, Amount, Pruning, eligible, misfit, share_of
from app.contract.spec import SPEC, PruneSpec, TrainSpec, parse_spec
from tests.specs import Document, prune_spec, train_spec

JOB = "job_" + "0" * 32
ADAPTER: TypeAdapter[Pruning] = TypeAdapter(Pruning)
SHAPES = parameter_shapes((16, 16, 32), 300)
AMOUNTS = ("magnitude", "bn-folded", "taylor", "snip", "random")
LEAST: dict[str, Document] = {
    "threshold": {},
    "std": {},
    **{method: {"sparsity": 0.5} for method in AMOUNTS},
    "n:m": {},
    "channels": {"sparsity": 0.5},
}
"""The least that each method wants to be told."""


def _pruning(method: str, **fields: Any) -> Any:
    return ADAPTER.validate_json(json.dumps({"method": method, **LEAST[method], **fields}))


def _errors(document: Document) -> list[FieldError]:
    with pytest.raises(ValidationError) as caught:
        parse_spec(document)
    return explain(caught.value, SPEC)


def _train(pruning: Document | None = None, **overrides: Any) -> Document:
    """Ten epochs of the default widths, on digits."""
    return train_spec(**{"model": {}, "training": {"epochs": 10}, "pruning": pruning, **overrides})


def _magnitude(**fields: Any) -> Document:
    return {"method": "magnitude", "sparsity": 0.5, **fields}


def test_a_share_is_taken_of_the_decimal_number_that_was_written() -> None:
    assert share_of(100, 0.29) == 29  # 0.29 * 100 is 28.999999999999996
    assert share_of(481_214, 0.9) == 433_092
    assert share_of(10**9, 1e-9) == 1
    assert share_of(7, 0.0) == 0


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_a_share_is_rounded_down_and_never_all(total: int, sparsity: float) -> None:
    share = share_of(total, sparsity)

    assert share == math.floor(Decimal(repr(sparsity)) * total)
    assert 0 <= share < total


@pytest.mark.parametrize("method", LEAST)
def test_every_method_has_defaults(method: str) -> None:
    pruning = _pruning(method)

    assert pruning.schedule == ONE_SHOT
    assert pruning.recalibrate_batchnorm is False
    assert misfit(pruning, SHAPES) is None
    assert ADAPTER.validate_json(pruning.model_dump_json()) == pruning


def test_every_method_is_tried_here() -> None:
    assert [kind.model_fields["method"].annotation.__args__[0] for kind in METHODS] == list(LEAST)  # type: ignore[union-attr]


@pytest.mark.parametrize("method", AMOUNTS)
def test_all_tensors_together_are_ranked_by_what_spares_small_ones(method: str) -> None:
    pruning = _pruning(method)

    assert pruning.scope == ("global" if method == "random" else "lamp")
    assert [name for name in PARAMETER_NAMES if eligible(pruning, name)] == list(PARAMETER_NAMES)


@pytest.mark.parametrize("method", LEAST)
def test_running_statistics_are_never_eligible(method: str) -> None:
    pruning = _pruning(method)

    for name in ("layer1.1.running_mean", "layer1.1.running_var", "layer1.1.num_batches_tracked"):
        assert not eligible(pruning, name)


def test_what_is_kept_is_counted_from_the_end() -> None:
    pruning = ADAPTER.validate_python({"method": "magnitude", "keep": 3})

    assert isinstance(pruning, Amount)
    assert [pruning.pruned_of(total) for total in (10, 3, 2)] == [7, 0, 0]


@pytest.mark.parametrize(
    ("layers", "untouched"),
    [
        (["conv"], {"fc1.bias", "fc2.weight", "fc2.bias"}),
        (["linear"], {name for name in PARAMETER_NAMES if name.startswith("layer")} | {"fc2.bias"}),
        (["conv", "linear"], {"fc2.bias"}),
    ],
)
def test_units_touch_what_they_own_and_what_reads_them(layers: list[str], untouched: set[str]) -> None:
    pruning = _pruning("channels", layers=layers)

    assert {name for name in PARAMETER_NAMES if not eligible(pruning, name)} == untouched


SCHEDULES: dict[str, Document] = {
    "one-shot": {"name": "one-shot"},
    "iterative": {"name": "iterative"},
    "gradual": {"name": "gradual", "end_epoch": 5},
}
LAWFUL = {
    **dict.fromkeys(AMOUNTS, ("one-shot", "iterative", "gradual")),
    **dict.fromkeys(("threshold", "std", "channels"), ("one-shot", "iterative")),
    "n:m": ("one-shot",),
}


@pytest.mark.parametrize("method", LEAST)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_method_has_the_schedules_that_suit_it(method: str, schedule: str) -> None:
    pruning = {"method": method, **LEAST[method], "schedule": SCHEDULES[schedule]}
    document = _train(pruning, fine_tuning={"epochs": 1} if schedule == "iterative" else None)

    if schedule in LAWFUL[method]:
        assert isinstance(parse_spec(document), TrainSpec)
    else:
        error = _errors(document)[0]
        assert error.pointer == "/pruning/schedule/name"
        assert error.code == "unknown_value"
        assert "one-shot" in error.detail


GRADUAL = {"name": "gradual", "end_epoch": 5}
ITERATIVE = {"name": "iterative"}
BEFORE = {"name": "one-shot", "when": "before-training"}
WIDE = {"channels": [16, 17, 32], "hidden": 300}


@pytest.mark.parametrize(
    ("pruning", "pointer", "said"),
    [
        ({"method": "magnitude"}, "/pruning", "give exactly one of sparsity and keep"),
        ({"method": "magnitude", "sparsity": 0.5, "keep": 5}, "/pruning", "give exactly one of sparsity and keep"),
        ({"method": "channels"}, "/pruning", "give exactly one of sparsity and keep"),
        ({"method": "random", "keep": 5, "scope": "layer"}, "/pruning", "with scope 'layer' give a sparsity"),
        ({"method": "random", "keep": 5, "scope": "lamp"}, "/pruning/scope", "known: global, layer"),
        (_magnitude(sparsity=1.0), "/pruning/sparsity", "less than 1"),
        (_magnitude(sparsity=-0.1), "/pruning/sparsity", "greater than or equal to 0"),
        (_magnitude(sparsity="0.5"), "/pruning/sparsity", "valid number"),
        ({"method": "snip", "keep": 0}, "/pruning/keep", "greater than or equal to 1"),
        (
            {"method": "snip", "keep": 481_215},
            "/pruning/keep",
            "only 481214 entries are eligible: keep at most so many",
        ),
        ({"method": "taylor", "sparsity": 0.5, "images": 0}, "/pruning/images", "greater than or equal to 1"),
        ({"method": "std", "multiplier": -1}, "/pruning/multiplier", "greater than or equal to 0"),
        ({"method": "n:m", "n": 4, "m": 4}, "/pruning", "n must be below m: 4:4 prunes nothing"),
        (
            {"method": "n:m", "m": 5},
            "/pruning/m",
            "m is 5, which does not divide the 16 inputs of layer2.0.weight",
        ),
        (
            {"method": "n:m", "tensors": ["layer1.0.weight"]},
            "/pruning/m",
            "m is 4, which does not divide the 1 inputs",
        ),
        (
            {"method": "n:m", "tensors": ["fc1.bias"]},
            "/pruning/tensors/0",
            "unknown value 'fc1.bias'; known: layer1.0.weight",
        ),
        ({"method": "n:m", "tensors": []}, "/pruning/tensors", "at least 1 item"),
        (
            {"method": "channels", "keep": WIDE},
            "/pruning/keep",
            "asks for widths (16, 17, 32, 300), the network has (16, 16, 32, 300): keep at most as many",
        ),
        (
            {"method": "channels", "keep": {"channels": [1, 0, 1], "hidden": 1}},
            "/pruning/keep/channels/1",
            "greater than or equal to 1",
        ),
        (
            {"method": "channels", "keep": {"channels": [1, 1, 1], "hidden": 1}, "scope": "global"},
            "/pruning",
            "keep names the width of each layer: leave scope at 'layer'",
        ),
        (
            {"method": "channels", "keep": {"channels": [8, 8, 8], "hidden": 200}, "layers": ["conv"]},
            "/pruning/keep/hidden",
            "keep.hidden is 200, but pruning.layers leaves linear out: add it, or keep 300",
        ),
        (
            {"method": "channels", "keep": {"channels": [8, 8, 8], "hidden": 200}, "layers": ["linear"]},
            "/pruning/keep/channels",
            "keep.channels is (8, 8, 8), but pruning.layers leaves conv out: add it, or keep (16, 16, 32)",
        ),
        (
            _magnitude(schedule={"name": "gradual", "begin_epoch": 5, "end_epoch": 5}),
            "/pruning/schedule",
            "end_epoch 5 must be after begin_epoch 5",
        ),
        (_magnitude(schedule={"name": "gradual"}), "/pruning/schedule/end_epoch", "required"),
        (
            _magnitude(schedule={**GRADUAL, "end_epoch": 11}),
            "/pruning/schedule/end_epoch",
            "end_epoch is 11, and training.epochs is 10: end the",
        ),
        (
            _magnitude(schedule=ITERATIVE),
            "/fine_tuning",
            "fine-tunes in every round: give a fine_tuning",
        ),
        (_magnitude(schedule={**ITERATIVE, "rounds": 1}), "/pruning/schedule/rounds", "greater than or equal to 2"),
        (_magnitude(schedule={"name": "oneshot"}), "/pruning/schedule/name", "did you mean 'one-shot'?"),
    ],
    ids=str,
)
def test_what_cannot_be_pruned_is_refused_with_place_and_remedy(pruning: Document, pointer: str, said: str) -> None:
    [error] = _errors(_train(pruning))

    assert error.pointer == pointer
    assert said in error.detail


TUNED = {"epochs": 2}


@pytest.mark.parametrize(
    ("overrides", "pointer", "said"),
    [
        ({"fine_tuning": TUNED}, "/fine_tuning", "fine_tuning trains what a pruning has left: give a pruning too"),
        (
            {"pruning": _magnitude(schedule=BEFORE), "fine_tuning": TUNED},
            "/fine_tuning",
            "the training itself tunes what is left: set fine_tuning to null",
        ),
        (
            {"pruning": _magnitude(schedule={**ITERATIVE, "rewind_epoch": 11}), "fine_tuning": TUNED},
            "/pruning/schedule/rewind_epoch",
            "rewind_epoch is 11, and training.epochs is 10: rewind to an epoch of the training",
        ),
        (
            {"training": {"select": "best"}},
            "/training/select",
            "training.select is best, and there are no images",
        ),
        (
            {"pruning": _magnitude(), "fine_tuning": {"select": "best"}},
            "/fine_tuning/select",
            "fine_tuning.select is best, and there are no images to choose by: set dataset.validation_images",
        ),
        ({"training": {"epochs": 2, "warmup_epochs": 3}}, "/training", "warmup_epochs 3 is more than epochs 2"),
        (
            {"pruning": _magnitude(), "fine_tuning": {"epochs": 2, "warmup_epochs": 3}},
            "/fine_tuning",
            "warmup_epochs 3 is more than epochs 2",
        ),
        (
            {"training": {"optimizer": {"name": "sgd", "momentum": 0, "nesterov": True}}},
            "/training/optimizer",
            "nesterov needs a momentum above 0",
        ),
        ({"training": {"optimizer": {"name": "sdg"}}}, "/training/optimizer/name", "did you mean 'sgd'?"),
        (
            {"training": {"optimizer": {"name": "adam", "momentum": 0.5}}},
            "/training/optimizer/momentum",
            "unknown field",
        ),
        (
            {"dataset": {"name": "digits", "validation_images": 1437}},
            "/dataset",
            "validation_images is 1437, and digits has 1437 training images: take fewer",
        ),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(overrides: Document, pointer: str, said: str) -> None:
    [error] = _errors(_train(**overrides))

    assert error.pointer == pointer
    assert said in error.detail


@pytest.mark.parametrize(
    ("overrides", "pointer", "said"),
    [
        (
            {"pruning": _magnitude(schedule=BEFORE)},
            "/pruning/schedule/when",
            "no training to prune before: set",
        ),
        (
            {"pruning": _magnitude(schedule={**ITERATIVE, "rewind_epoch": 0}), "fine_tuning": TUNED},
            "/pruning/schedule/rewind_epoch",
            "no training to rewind to: set pruning.schedule.rewind_epoch to null",
        ),
        ({"pruning": _magnitude(schedule=ITERATIVE)}, "/fine_tuning", "give a fine_tuning"),
        (
            {"pruning": _magnitude(schedule=GRADUAL)},
            "/fine_tuning",
            "happens within the fine-tuning: give a",
        ),
        (
            {"pruning": _magnitude(schedule=GRADUAL), "fine_tuning": {"epochs": 4}},
            "/pruning/schedule/end_epoch",
            "end_epoch is 5, and fine_tuning.epochs is 4: end the pruning within it",
        ),
        (
            {"fine_tuning": {"select": "best"}, "dataset": {"name": "digits"}},
            "/fine_tuning/select",
            "fine_tuning.select is best, and there are no images to choose by",
        ),
    ],
    ids=str,
)
def test_a_prune_job_refuses_what_only_a_training_can_do(overrides: Document, pointer: str, said: str) -> None:
    [error] = _errors(prune_spec(JOB, **overrides))

    assert (error.pointer, error.code) == (pointer, "misfit")
    assert said in error.detail


@pytest.mark.parametrize(
    "overrides",
    [
        {"pruning": _magnitude(schedule={**ITERATIVE, "rounds": 5}), "fine_tuning": TUNED},
        {"pruning": _magnitude(schedule=GRADUAL), "fine_tuning": {"epochs": 5}},
        {"pruning": {"method": "channels", "keep": WIDE}},
    ],
    ids=str,
)
def test_a_prune_job_takes_the_schedules_that_need_no_training(overrides: Document) -> None:
    # Whether its source is wide enough shows once the source is known.
    assert isinstance(parse_spec(prune_spec(JOB, **overrides)), PruneSpec)


def test_gradual_pruning_may_end_with_the_training() -> None:
    assert parse_spec(_train(_magnitude(schedule={**GRADUAL, "end_epoch": 10})))


def test_the_last_entry_may_be_all_that_is_kept_and_all_may_be() -> None:
    for keep in (1, 481_214):
        assert parse_spec(_train({"method": "magnitude", "keep": keep}))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (_train(training={"epochs": 1000}, model={"channels": [512, 512, 512]}), "multiply-accumulates, more than"),
        (
            _train(
                dataset={"name": "mnist", "validation_images": 59_999},
                model={"channels": [512, 512, 512], "hidden": 4096},
                training={"epochs": 100},
            ),
            "multiply-accumulates, more than",
        ),
        (
            _train(
                {
                    **_magnitude(),
                    "method": "taylor",
                    "images": 60_000,
                    "schedule": {"name": "gradual", "end_epoch": 10, "every_steps": 1},
                },
                dataset={"name": "mnist"},
                model={"channels": [64, 64, 64]},
                training={"epochs": 10, "batch_size": 1},
            ),
            "multiply-accumulates, more than",
        ),
        (
            _train(
                dataset={"name": "mnist", "validation_images": 50_000},
                model={"channels": [512, 512, 512], "hidden": 4096},
                training={"epochs": 1},
                sensitivity={"sparsities": [n / 100 for n in range(32)]},
            ),
            "points for sensitivity",
        ),
        (
            _train(
                _magnitude(schedule={**ITERATIVE, "rounds": 50}), training={"epochs": 1}, fine_tuning={"epochs": 1000}
            ),
            "have 50001 epochs, more than the 5000",
        ),
        (
            prune_spec(JOB, pruning=_magnitude(schedule={**ITERATIVE, "rounds": 50}), fine_tuning={"epochs": 1000}),
            "have 50000 epochs, more than the 5000",
        ),
    ],
    ids=["training", "validation", "scores", "sensitivity", "epochs", "rounds of a prune job"],
)
def test_too_much_work_is_refused_whatever_it_is_for(spec: Document, said: str) -> None:
    [error] = _errors(spec)

    assert (error.pointer, error.code) == ("", "too_much_work")
    assert said in error.detail


def test_what_continues_is_held_against_its_checkpoints_widths_and_not_the_defaults() -> None:
    spec = _train({"method": "magnitude", "keep": 600_000}, initial={"job_id": JOB})
    del spec["model"]

    assert parse_spec(spec)
    [error] = _errors({**spec, "model": {}})
    assert "only 481214 entries are eligible" in error.detail
