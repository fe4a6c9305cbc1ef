"""Exactly so many entries go, whatever the scores are."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from app.contract.network import PARAMETER_NAMES
from app.contract.pruning import eligible, share_of
from app.contract.spec import ModelSpec
from tests.prunings import UNHURRIED, entries, full, masked, pruning, random_mask, shrunk, slopes, state_of
from worker.engine.errors import PruningImpossible
from worker.engine.model import fresh
from worker.engine.pruning import Mask, chance, needs_gradients, prune
from worker.engine.pruning.ranking import lowest

METHODS = ("magnitude", "bn-folded", "taylor", "snip", "random")
TOGETHER = [
    (method, scope) for method in METHODS for scope in ("global", "lamp") if (method, scope) != ("random", "lamp")
]
# Linear and BatchNorm tensors, which every method can score without another tensor.
NAMES = ("layer1.1.weight", "layer1.1.bias", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
# Few, so that there are ties; two that vanish when squared in single precision; and what is no number.
VALUES = st.sampled_from([0.0, -0.0, 0.25, -0.25, 1.0, -1.0, 1e-30, -2e-30, 1e30, math.inf, math.nan])
SHARES = st.floats(0, 1, exclude_max=True)


class Case(NamedTuple):
    tensors: dict[str, Tensor]
    mask: Mask

    @property
    def total(self) -> int:
        return entries(self.tensors)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """One to six tensors of any sizes, some entries masked already."""
    tensors, keep = dict[str, Tensor](), dict[str, Tensor]()
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True)):
        values = draw(st.lists(VALUES, min_size=1, max_size=30))
        tensors[name] = torch.tensor(values)
        keep[name] = torch.tensor(draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    return Case(tensors, Mask(keep))


def _prune(document: dict[str, Any], tensors: dict[str, Tensor], mask: Mask, sparsity: float | None = None) -> Mask:
    return prune(pruning(**document), tensors, mask, sparsity=sparsity, gradients=slopes(tensors))


def _share(total: int, sparsity: float) -> int:
    """As a person with pencil and paper takes it."""
    return math.floor(Decimal(repr(sparsity)) * total)


@UNHURRIED
@given(cases(), st.sampled_from(TOGETHER), SHARES)
def test_exactly_the_share_is_masked_afterwards(case: Case, how: tuple[str, str], sparsity: float) -> None:
    method, scope = how

    after = _prune({"method": method, "scope": scope, "sparsity": sparsity}, *case)

    assert masked(after) == max(_share(case.total, sparsity), masked(case.mask))
    assert shrunk(case.mask, after)


@UNHURRIED
@given(cases(), st.sampled_from(TOGETHER), st.data())
def test_exactly_so_many_are_kept(case: Case, how: tuple[str, str], data: st.DataObject) -> None:
    method, scope = how
    keep = data.draw(st.integers(1, case.total))

    after = _prune({"method": method, "scope": scope, "keep": keep}, *case)

    assert sum(after.kept.values()) == min(keep, case.total - masked(case.mask))
    assert shrunk(case.mask, after)


@UNHURRIED
@given(cases(), st.sampled_from(METHODS), SHARES)
def test_scope_layer_masks_the_share_of_each_tensor(case: Case, method: str, sparsity: float) -> None:
    after = _prune({"method": method, "scope": "layer", "sparsity": sparsity}, *case)

    for name, before in case.mask.items():
        assert int((~after[name]).sum()) == max(_share(before.numel(), sparsity), int((~before).sum()))
    assert shrunk(case.mask, after)


@UNHURRIED
@given(cases(), st.sampled_from([*TOGETHER, *((method, "layer") for method in METHODS)]), SHARES, SHARES)
def test_a_step_of_a_schedule_takes_its_own_share_and_never_more_than_the_last(
    case: Case, how: tuple[str, str], final: float, step: float
) -> None:
    method, scope = how
    document = {"method": method, "scope": scope, "sparsity": final}

    on_the_way = _prune(document, *case, sparsity=step)

    alike = {"method": method, "scope": scope, "sparsity": min(step, final)}
    expected = _prune(alike, *case)
    assert all(torch.equal(on_the_way[name], expected[name]) for name in case.mask)


@UNHURRIED
@given(cases(), SHARES, st.data())
def test_a_step_never_goes_below_keep(case: Case, step: float, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, case.total))

    after = _prune({"method": "magnitude", "keep": keep}, case.tensors, Mask.full(case.tensors), step)

    assert sum(after.kept.values()) == max(keep, case.total - _share(case.total, step))


@UNHURRIED
@given(cases(), st.sampled_from([*TOGETHER, ("magnitude", "layer"), ("random", "layer")]), SHARES, SHARES)
def test_more_sparsity_keeps_nothing_that_less_drops(case: Case, how: tuple[str, str], one: float, two: float) -> None:
    method, scope = how
    low, high = sorted((one, two))

    less, more = (
        _prune({"method": method, "scope": scope, "sparsity": share}, case.tensors, case.mask) for share in (low, high)
    )
    in_rounds = _prune({"method": method, "scope": scope, "sparsity": high}, case.tensors, less)

    assert shrunk(less, more)
    assert all(torch.equal(in_rounds[name], more[name]) for name in more)


@pytest.mark.parametrize(("method", "scope"), TOGETHER)
@pytest.mark.parametrize("keep", [1, 9, 20])
def test_equal_entries_do_not_all_go_at_once(method: str, scope: str, keep: int) -> None:
    tensors = {"fc1.weight": torch.ones(4, 4), "fc2.bias": torch.ones(4)}

    after = _prune({"method": method, "scope": scope, "keep": keep}, tensors, Mask.full(tensors))

    assert sum(after.kept.values()) == keep


def test_equal_entries_go_in_the_order_of_names_and_positions() -> None:
    tensors = {"fc2.bias": torch.ones(3), "fc1.weight": torch.ones(2, 2)}

    after = _prune({"method": "magnitude", "scope": "global", "keep": 3}, tensors, Mask.full(tensors))

    assert after["fc2.bias"].tolist() == [False, False, False]
    assert after["fc1.weight"].tolist() == [[False, True], [True, True]]


def test_what_is_masked_counts_first() -> None:
    tensors = {"fc1.weight": torch.tensor([9.0, 1.0, 2.0, 3.0])}
    mask = Mask({"fc1.weight": torch.tensor([False, True, True, True])})

    after = _prune({"method": "magnitude", "scope": "global", "sparsity": 0.5}, tensors, mask)

    assert after["fc1.weight"].tolist() == [False, False, True, True]


def test_what_is_no_number_goes_last() -> None:
    tensors = {"fc1.weight": torch.tensor([math.nan, 1.0, math.inf, 2.0, math.nan])}

    for scope in ("global", "layer", "lamp"):
        after = _prune({"method": "magnitude", "scope": scope, "sparsity": 0.4}, tensors, Mask.full(tensors))
        assert after["fc1.weight"].tolist() == [True, False, True, False, True]


@UNHURRIED
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), st.data())
def test_the_lowest_are_those_that_a_stable_sort_puts_first(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(values)))
    first = set(sorted(range(len(values)), key=values.__getitem__)[:count])

    marked = lowest(torch.tensor(values), torch.ones(len(values), dtype=torch.bool), count)

    assert set(marked.nonzero().flatten().tolist()) == first


def test_only_eligible_tensors_are_touched_and_counted() -> None:
    state = state_of()
    params = pruning("magnitude", sparsity=0.5, scope="global", layers=["conv"], parameters=["weight"])

    after = prune(params, state, full(state))

    touched = {name for name, keep in after.items() if not keep.all()}
    names = {name for name in after if eligible(params, name)}
    assert touched == names == {"layer1.0.weight", "layer2.0.weight", "layer3.0.weight"}
    assert masked(after) == sum(state[name].numel() for name in names) // 2


def test_no_tensor_is_emptied_by_a_share_of_each() -> None:
    state = state_of((1, 1, 1), 1)

    after = prune(pruning("magnitude", sparsity=0.9999, scope="layer"), state, full(state))

    assert set(after.kept.values()) == {1}


@pytest.mark.parametrize(("method", "scope"), TOGETHER)
@pytest.mark.parametrize(("sparsity", "kept"), [(0.0, 481_214), (0.9, 48_122), (0.9969, 1_492), (0.9999999, 1)])
def test_the_sources_network_keeps_exactly_so_many(method: str, scope: str, sparsity: float, kept: int) -> None:
    state = fresh(ModelSpec(), seed=0).state_dict()
    parameters = {name: state[name] for name in state if "running" not in name and "num_batches" not in name}
    params = pruning(method, scope=scope, sparsity=sparsity)

    after = prune(params, state, Mask.full(parameters), gradients=slopes(parameters) if needs_gradients(params) else ())

    assert sum(after.kept.values()) == kept == 481_214 - share_of(481_214, sparsity)


@pytest.mark.parametrize("method", METHODS)
def test_more_than_there_is_cannot_be_kept(method: str) -> None:
    tensors = {"fc1.weight": torch.ones(2, 2)}

    with pytest.raises(PruningImpossible, match="keep is 5, but only 4 entries are eligible: keep at most so many"):
        _prune({"method": method, "keep": 5}, tensors, Mask.full(tensors))


EVERY_METHOD: list[dict[str, Any]] = [
    {"method": "threshold", "threshold": 0.5},
    {"method": "std"},
    *({"method": method, "sparsity": 0.6} for method in METHODS),
    {"method": "n:m", "tensors": ["layer2.0.weight", "layer3.0.weight", "fc1.weight"]},
    {"method": "channels", "sparsity": 0.6},
    {"method": "channels", "sparsity": 0.6, "scope": "global"},
    {"method": "channels", "keep": {"channels": [2, 2, 2], "hidden": 2}},
]


@pytest.mark.parametrize("document", EVERY_METHOD, ids=str)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_no_method_brings_back_what_is_masked(document: dict[str, Any], kept: float) -> None:
    state = state_of()
    before = random_mask(state, kept)

    after = _prune(document, state, before)

    assert shrunk(before, after)
    assert kept < 0.9 or masked(after) > masked(before)


@pytest.mark.parametrize("document", EVERY_METHOD, ids=str)
def test_values_behind_the_mask_have_no_say(document: dict[str, Any]) -> None:
    state = state_of()
    mask = random_mask(state, 0.7)

    one, two = _prune(document, state, mask), _prune(document, mask.apply(state), mask)

    assert all(torch.equal(one[name], two[name]) for name in mask)


def test_random_pruning_follows_its_seed_and_nothing_else() -> None:
    state, other = state_of(seed=1), state_of(seed=2)
    masks = [
        prune(pruning("random", sparsity=0.5, seed=seed), weights, full(weights))
        for seed, weights in [(7, state), (7, other), (8, state)]
    ]

    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    assert not all(torch.equal(masks[0][name], masks[2][name]) for name in masks[0])


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize(("sparsity", "left"), [(0.6, 4), (0.2, 4), (0.8, 2)])
def test_what_is_zero_already_counts_in_random_pruning(scope: str, sparsity: float, left: int) -> None:
    tensors = {"fc1.weight": torch.tensor([0.0, 1, 0, 2, -0.0, 3, 0, 4, 0, 0])}

    after = _prune({"method": "random", "scope": scope, "sparsity": sparsity}, tensors, Mask.full(tensors))

    assert masked(after) == round(10 * sparsity)
    assert int(after.apply(tensors)["fc1.weight"].count_nonzero()) == left


def test_biases_that_a_training_begins_at_zero_go_no_sooner_in_random_pruning() -> None:
    state = fresh(ModelSpec(), seed=0).state_dict()
    parameters = {name: state[name] for name in PARAMETER_NAMES}
    params = pruning("random", sparsity=0.5, schedule={"name": "one-shot", "when": "before-training"})

    after = prune(params, state, Mask.full(parameters))

    assert 0 < sum(after.kept[f"layer{index}.1.bias"] for index in (1, 2, 3)) < 64


def test_random_scores_of_half_a_million_entries_all_differ() -> None:
    drawn = chance.scores({"fc1.weight": torch.ones(300, 1568)}, seed=0)["fc1.weight"]

    assert len(set(drawn.flatten().tolist())) == drawn.numel()


def test_random_pruning_spreads_over_all_of_a_tensor() -> None:
    tensors = {"fc1.weight": torch.zeros(100, 100)}

    after = _prune({"method": "random", "sparsity": 0.5}, tensors, Mask.full(tensors))["fc1.weight"]

    # Each row's count has mean 50 and standard deviation 5.
    assert after.sum(1).float().mean() == 50
    assert ((after.sum(1) > 25) & (after.sum(1) < 75)).all()
