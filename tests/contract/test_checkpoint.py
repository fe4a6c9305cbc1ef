"""The complaint that a wrong state dict gets: which tensor, what was expected, what was found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.checkpoint import NAMES, NotTheNetwork, TensorFacts, network_of, tensors_of
from app.contract.network import MNIST_ENDS, DataShape, Ends
from app.contract.spec import ModelSpec

MODEL = ModelSpec(channels=(2, 3, 4), hidden=5)

widths = st.integers(1, 512)
models = st.builds(ModelSpec, channels=st.tuples(widths, widths, widths), hidden=st.integers(1, 4096))


data_shapes = st.builds(
    DataShape,
    channels=st.sampled_from([1, 3]),
    height=st.integers(8, 64),
    width=st.integers(8, 64),
    classes=st.integers(2, 1000),
)


@given(models, data_shapes)
def test_the_sizes_are_found_in_the_shapes(model: ModelSpec, shape: DataShape) -> None:
    tensors = tensors_of(model, shape.ends)

    assert network_of(tensors) == network_of(tensors, model, shape.ends) == (model, shape.ends)


def _complaint(
    tensors: dict[str, TensorFacts], model: ModelSpec | None = None, ends: Ends | None = None
) -> NotTheNetwork:
    with pytest.raises(NotTheNetwork) as caught:
        network_of(tensors, model, ends)
    return caught.value


@pytest.mark.parametrize(
    ("name", "facts", "said"),
    [
        ("fc2.bias", TensorFacts("F32", (11,)), "fc2.bias has shape [11], expected [10], in a network of channels"),
        ("layer2.0.weight", TensorFacts("F32", (3, 2, 5, 5)), "has shape [3, 2, 5, 5], expected [3, 2, 3, 3]"),
        ("layer1.0.weight", TensorFacts("F32", (2, 2, 5, 5)), "expected 1 or 3 image channels in dimension 1"),
        ("fc1.weight", TensorFacts("F32", (5, 197)), "(height // 4)·(width // 4) features of each of 4 channels"),
        ("fc1.weight", TensorFacts("F32", (5, 4 * 17)), "(height // 4)·(width // 4) features of each of 4 channels"),
        ("fc2.weight", TensorFacts("F32", (1, 5)), "expected 2 to 1000 classes in dimension 0"),
        ("layer3.1.num_batches_tracked", TensorFacts("I64", (1,)), "has shape [1], expected []"),
        ("fc1.weight", TensorFacts("F16", (5, 196)), "has type F16, expected F32: save model.float()"),
        ("layer1.1.num_batches_tracked", TensorFacts("F32", ()), "has type F32, expected I64"),
        ("fc1.weight", TensorFacts("F32", ()), "has shape [], expected 2 dimensions"),
        ("layer2.0.weight", TensorFacts("F32", (513, 2, 3, 3)), "the width, that should be less than or equal to 512"),
        ("fc1.weight", TensorFacts("F32", (0, 196)), "should be greater than or equal to 1"),
    ],
)
def test_a_wrong_tensor_is_named_with_what_was_expected_and_found(name: str, facts: TensorFacts, said: str) -> None:
    complaint = _complaint({**tensors_of(MODEL), name: facts})

    assert complaint.faults == {name: str(complaint)}
    assert str(complaint).startswith(name)
    assert said in str(complaint)


def test_other_widths_than_asked_for_are_told_without_inferred_ones() -> None:
    complaint = _complaint(tensors_of(MODEL), ModelSpec(channels=(2, 3, 4), hidden=6), MNIST_ENDS)

    assert str(complaint) == "fc1.weight has shape [5, 196], expected [6, 196]"


def test_missing_and_unexpected_names_are_told_and_bounded() -> None:
    tensors = tensors_of(MODEL)
    del tensors["fc2.bias"]
    tensors |= {f"extra{number}" + "x" * 100: TensorFacts("F32", ()) for number in range(50)}

    complaint = _complaint(tensors)

    assert "missing 'fc2.bias'; unexpected 'extra0xxx" in str(complaint)
    assert str(complaint).endswith("and 45 more")
    assert len(str(complaint)) < 600
    assert len(complaint.faults) == 51
    assert complaint.faults["fc2.bias"] == "fc2.bias is missing"
    assert len(complaint.faults["extra0" + "x" * 100]) < 150


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.cnn."])
def test_a_wrappers_prefix_is_recognized(prefix: str) -> None:
    complaint = str(_complaint({prefix + name: facts for name, facts in tensors_of(MODEL).items()}))

    assert repr(prefix) in complaint
    assert "missing" not in complaint


def test_nothing_at_all_lacks_every_name() -> None:
    assert f"and {len(NAMES) - 5} more" in str(_complaint({}))
