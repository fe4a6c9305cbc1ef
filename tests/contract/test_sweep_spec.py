"""A grid over one train spec: how it becomes members, and what is refused with the place to mend."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from app.contract.explain import FieldError, explain
from app.contract.grid import MAX_MEMBERS, Grid, Point
from app.contract.members import Member, documents, members, of_same_shape, place_in_sweep, settings_of
from app.contract.pruning import MagnitudePruning, RandomPruning, ThresholdPruning
from app.contract.spec import SPEC, SweepSpec, TrainSpec, parse_spec, parse_stored
from tests.specs import Document, sweep_spec, train_spec

WIDE, NARROW = {"channels": [8, 8, 8], "hidden": 20}, {"channels": [2, 2, 2], "hidden": 4}


def _sweep(**overrides: Any) -> SweepSpec:
    spec = parse_spec(sweep_spec(**overrides))
    assert isinstance(spec, SweepSpec)
    return spec


def _members(**overrides: Any) -> list[Member]:
    return [*members(_sweep(**overrides))]


def _errors(document: Document) -> list[FieldError]:
    with pytest.raises(ValidationError) as caught:
        parse_spec(document)
    return explain(caught.value, SPEC)


def test_members_are_all_combinations_and_the_last_axis_changes_the_fastest() -> None:
    base = train_spec(regularization={"penalty": "l1"})
    found = _members(base=base, grid={"seeds": [3, 4], "widths": [WIDE, NARROW], "strengths": [0.1, 0.2]})
    assert [member.number for member in found] == list(range(8))
    settings = [(m.spec.model.hidden, m.spec.regularization and m.spec.regularization.strength) for m in found]
    assert settings == [(20, 0.1), (20, 0.1), (20, 0.2), (20, 0.2), (4, 0.1), (4, 0.1), (4, 0.2), (4, 0.2)]
    assert [member.spec.training.seed for member in found] == [3, 4] * 4


def test_a_member_is_the_spec_that_one_would_have_written_by_hand() -> None:
    base = train_spec(labels={"team": "a"}, limits={"max_runtime_seconds": 60}, histogram={"bins": 8})
    first, second = _members(base=base, display_name="how far", grid={"thresholds": [0.01, 0.25]})
    by_hand = {**base, "pruning": {"method": "threshold", "threshold": 0.25}, "display_name": "how far: threshold 0.25"}
    assert second.spec == parse_spec(by_hand)
    assert first.spec.display_name == "how far: threshold 0.01"


def test_a_strength_of_0_is_the_base_without_its_penalty() -> None:
    base = train_spec(regularization={"penalty": "elastic-net", "l1_ratio": 0.25})
    none, some = _members(base=base, grid={"strengths": [0, 0.5]})
    assert none.spec == parse_spec({**base, "regularization": None, "display_name": "strength 0"})
    assert some.spec.regularization is not None
    assert some.spec.regularization.model_dump() == {"penalty": "elastic-net", "strength": 0.5, "l1_ratio": 0.25}


def test_an_amount_takes_the_place_of_the_bases() -> None:
    base = train_spec(pruning={"method": "magnitude", "sparsity": 0.5})
    for axis, values in (("sparsities", [0.1, 0.2]), ("keeps", [100, 200])):
        found = [member.spec.pruning for member in _members(base=base, grid={axis: values})]
        assert all(isinstance(pruning, MagnitudePruning) for pruning in found)
        told = [(pruning.sparsity, pruning.keep) for pruning in found if isinstance(pruning, MagnitudePruning)]
        assert told == [(value, None) if axis == "sparsities" else (None, value) for value in values]


def test_a_seed_is_that_of_all_that_draws() -> None:
    base = train_spec(pruning={"method": "random", "sparsity": 0.5}, fine_tuning={"epochs": 1})
    (member,) = _members(base=base, grid={"seeds": [7]})
    assert isinstance(member.spec.pruning, RandomPruning)
    assert member.spec.fine_tuning is not None
    assert (member.spec.training.seed, member.spec.fine_tuning.seed, member.spec.pruning.seed) == (7, 7, 7)


def test_a_long_name_leaves_room_for_what_varies() -> None:
    (member,) = _members(display_name="n" * 128, grid={"thresholds": [0.125]})
    assert member.spec.display_name is not None
    assert len(member.spec.display_name) == 128
    assert member.spec.display_name.endswith("n…: threshold 0.125")


def test_a_sweep_survives_its_way_through_the_database() -> None:
    spec = _sweep(grid={"thresholds": [0.1], "widths": [WIDE]})
    assert parse_stored(json.loads(spec.model_dump_json())) == spec
    assert len([*documents(spec)]) == spec.grid.size == 1


@pytest.mark.parametrize(
    ("overrides", "pointer", "code"),
    [
        ({"grid": {}}, "/grid", "missing"),
        ({"grid": {"strenghts": [1]}}, "/grid/strenghts", "unknown_field"),
        ({"grid": {"thresholds": [0.1, -1]}}, "/grid/thresholds/1", "greater_than_equal"),
        ({"grid": {"thresholds": [0.1, 0.1]}}, "/grid/thresholds", "value_error"),
        ({"grid": {"widths": [WIDE, WIDE]}}, "/grid/widths", "value_error"),
        (
            {"grid": {"widths": [{"channels": [1, 2, 999], "hidden": 1}]}},
            "/grid/widths/0/channels/2",
            "less_than_equal",
        ),
        ({"grid": {"seeds": [*range(17)], "thresholds": [n / 100 for n in range(16)]}}, "/grid", "too_much_work"),
        ({"grid": {"strengths": [0.1]}}, "/grid/strengths", "misfit"),
        ({"grid": {"sparsities": [0.1]}}, "/grid/sparsities", "misfit"),
        ({"grid": {"keeps": [10]}}, "/grid/keeps", "misfit"),
        ({"base": train_spec(pruning=None)}, "/grid/thresholds", "misfit"),
        (
            {"base": train_spec(initial={"job_id": "job_" + "0" * 32}), "grid": {"widths": [WIDE]}},
            "/grid/widths",
            "misfit",
        ),
        ({"base": train_spec(training={"epocs": 1})}, "/base/training/epocs", "unknown_field"),
        ({"base": {**train_spec(), "kind": "prune"}}, "/base/kind", "unknown_value"),
        ({"base": train_spec(fine_tuning={"select": "best"})}, "/base/fine_tuning/select", "misfit"),
        ({"limits": {"max_members_seconds": 0}}, "/limits/max_members_seconds", "greater_than_equal"),
    ],
)
def test_what_is_wrong_is_told_with_its_place_in_the_sweep(overrides: Document, pointer: str, code: str) -> None:
    [error] = _errors(sweep_spec(**overrides))
    assert (error.pointer, error.code) == (pointer, code)


def test_both_amounts_at_once_are_refused() -> None:
    base = train_spec(pruning={"method": "magnitude", "sparsity": 0.5})
    [error] = _errors(sweep_spec(base=base, grid={"sparsities": [0.1], "keeps": [5]}))
    assert (error.pointer, error.code) == ("/grid/keeps", "misfit")


def test_as_many_members_as_are_allowed_are_allowed() -> None:
    assert _sweep(grid={"seeds": [*range(MAX_MEMBERS)]}).grid.size == MAX_MEMBERS


@pytest.mark.parametrize(
    ("pointer", "place"),
    [
        ("/pruning/threshold", "/grid/thresholds/1"),
        ("/model/channels/2", "/grid/widths/0/channels/2"),
        ("/training/epochs", "/base/training/epochs"),
        ("/training/seed", "/base/training/seed"),
        ("/pruning", "/base/pruning"),
        ("", "/base"),
    ],
)
def test_a_place_in_a_member_is_found_in_the_sweep(pointer: str, place: str) -> None:
    grid = Grid.model_validate_json(json.dumps({"widths": [WIDE], "thresholds": [0.1, 0.2]}))
    assert place_in_sweep(pointer, grid, grid.points()[1]) == place


def test_members_of_the_same_widths_have_the_same_shape() -> None:
    specs = [
        member.spec for member in _members(grid={"widths": [WIDE, NARROW], "thresholds": [0.1, 0.2], "seeds": [1, 2]})
    ]
    assert of_same_shape(specs) == ((0, 1, 2, 3), (4, 5, 6, 7))
    shapes = [
        {spec.model.shapes()["fc1.weight"] for spec in (specs[n] for n in group)} for group in of_same_shape(specs)
    ]
    assert [len(each) for each in shapes] == [1, 1]


def test_settings_tell_what_a_member_has_whether_it_varies_or_not() -> None:
    (member,) = _members(grid={"thresholds": [0.25]})
    assert isinstance(member.spec.pruning, ThresholdPruning)
    found = settings_of(member.spec)
    assert found._replace(widths=None) == Point(strength=0.0, threshold=0.25, seed=0)
    assert found.widths is not None
    assert found.widths.model_dump(mode="json") == {"channels": [4, 4, 8], "hidden": 16}


def test_every_member_is_a_train_spec_that_is_valid_by_itself() -> None:
    for member in _members(grid={"widths": [WIDE, NARROW], "seeds": [1]}):
        assert isinstance(parse_spec(member.spec.model_dump_json()), TrainSpec)
