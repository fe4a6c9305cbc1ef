from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file
from torch import Tensor

from tests.engine.conftest import Run
from worker.engine.histogram import distribution


def _plain_double_loop(tensor: Tensor, bins: int) -> list[int]:
    """As the source has it: every weight against every centre, the first of the nearest wins."""
    weights = tensor.double().flatten().tolist()
    centres = np.linspace(min(weights), max(weights), bins).tolist()
    counts = [0] * bins
    for weight in weights:
        nearest = 0
        for index in range(1, bins):
            if abs(weight - centres[index]) < abs(weight - centres[nearest]):
                nearest = index
        counts[nearest] += 1
    return counts


@given(
    arrays("float32", st.integers(1, 60), elements=st.floats(-1e3, 1e3, width=32)),
    st.integers(2, 40),
)
@example(np.array([0.0, 1.0, 0.5], dtype="float32"), 2)  # a tie
@example(np.array([3.0] * 5, dtype="float32"), 7)  # constant: all centres are one
@example(np.array([1.0, np.nextafter(np.float32(1), np.float32(2))], dtype="float32"), 40)  # centres closer than floats
def test_it_is_the_plain_double_loop(array: object, bins: int) -> None:
    tensor = torch.tensor(array)

    assert list(distribution(tensor, bins).counts) == _plain_double_loop(tensor, bins)


@pytest.mark.parametrize("file", ["dense.safetensors", "model.safetensors"])
@pytest.mark.parametrize("which", ["plain", "l1"])
def test_it_is_the_plain_double_loop_on_trained_tensors(request: pytest.FixtureRequest, which: str, file: str) -> None:
    trained: Run = request.getfixturevalue(which)
    tensors = load_file(trained.folder / file)

    for entry in trained.histogram.tensors:
        told = entry.before if file.startswith("dense") else entry.after
        assert told is not None
        assert list(told.counts) == _plain_double_loop(tensors[entry.name], 256), entry.name


def test_a_tie_goes_to_the_lower_centre() -> None:
    assert distribution(torch.tensor([0.0, 0.5, 1.0]), 2).counts == (2, 1)


def test_a_constant_tensor_is_one_column() -> None:
    told = distribution(torch.full((3, 4), 0.25), 8)

    assert (told.min, told.max, told.counts) == (0.25, 0.25, (12, 0, 0, 0, 0, 0, 0, 0))


def test_more_weights_than_are_counted_at_a_time() -> None:
    weights = torch.randn((1 << 20) + 7, generator=torch.Generator().manual_seed(0))

    told = distribution(weights, 256)

    assert sum(told.counts) == weights.numel()
    assert (told.centres[0], told.centres[-1]) == (told.min, told.max)
    assert told.counts[128] > told.counts[10] > 0


@given(st.integers(2, 300), st.floats(-1e3, 1e3, width=32), st.floats(2**-10, 1e3, width=32))
def test_weights_around_the_middle_of_two_centres_are_counted_as_by_the_double_loop(
    bins: int, low: float, width: float
) -> None:
    ends = torch.tensor([low, low + width])
    centres = np.linspace(float(ends[0]), float(ends[1]), bins)
    middle = ((centres[:-1] + centres[1:]) / 2).astype(np.float32)
    around = [np.nextafter(middle, np.float32(towards)) for towards in (-np.inf, np.inf)]
    weights = torch.cat([ends, *(torch.from_numpy(each) for each in (middle, *around))]).clamp(ends[0], ends[1])

    assert list(distribution(weights, bins).counts) == _double_loop_by_rows(weights, bins)


def _double_loop_by_rows(weights: Tensor, bins: int) -> list[int]:
    values = weights.double().numpy()
    centres = np.linspace(values.min(), values.max(), bins)
    nearest = np.abs(values[:, None] - centres[None, :]).argmin(axis=1)
    return np.bincount(nearest, minlength=bins).tolist()  # type: ignore[no-any-return]


def test_where_centres_are_as_close_as_floats_distances_are_compared() -> None:
    weights = torch.tensor([1.0, 1.0 + 2**-23, 1.0 + 2**-22, 1.0 + 3 * 2**-23]).repeat(3)
    for bins in range(2, 20):
        assert list(distribution(weights, bins).counts) == _double_loop_by_rows(weights, bins)
