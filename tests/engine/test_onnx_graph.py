from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.engine.pruned import Pruned, dense, images, pruned
from worker.engine.compact import INPUTS, build, compact
from worker.engine.onnx_graph import check, compact_model, latencies, plain_model

SOURCE = ((16, 16, 32), 300)
CLOSE = 1e-5
"""Relative to the largest logit: both runtimes round sums of up to 1,568 terms, in orders of their own."""


def _choosy(network: Pruned) -> Pruned:
    """Three in four inputs of fc1 gone, so that the rest must be gathered."""
    network.state["fc1.weight"][:, torch.arange(network.state["fc1.weight"].shape[1]) % 4 > 0] = 0
    return network


def _tolerance(network: Pruned, batch: Tensor) -> float:
    with torch.no_grad():
        return CLOSE * max(1.0, float(network.network()(batch).abs().max()))


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("network", [dense(), dense(*SOURCE), _choosy(dense())], ids=["small", "source", "choosy"])
def test_onnx_runtime_computes_what_pytorch_does(network: Pruned, batch: int) -> None:
    small, whole, drawn = compact(network.state), network.network(), images(batch, seed=batch)
    tolerance = _tolerance(network, drawn)

    assert check(plain_model(network.state), whole, drawn) < tolerance
    assert check(compact_model(small.state), build(small), drawn) < tolerance
    assert check(compact_model(small.state), whole, drawn) < tolerance


@settings(max_examples=25, deadline=None)
@given(pruned(), st.sampled_from([1, 7]))
def test_it_does_so_however_the_network_was_pruned(network: Pruned, batch: int) -> None:
    small, drawn = compact(network.state), images(batch)
    tolerance = _tolerance(network, drawn)

    assert check(plain_model(network.state), network.network(), drawn) < tolerance
    assert check(compact_model(small.state), build(small), drawn) < tolerance


def test_a_difference_is_told() -> None:
    network = dense()
    model = plain_model(network.state)
    network.state["fc2.bias"][3] += 0.25

    assert check(model, network.network(), images()) == pytest.approx(0.25, abs=CLOSE)


def test_the_same_state_gives_the_same_bytes_and_another_state_others() -> None:
    network, again, other = dense(seed=1), dense(seed=1), dense(seed=2)

    assert plain_model(network.state) == plain_model(again.state) != plain_model(other.state)
    small = [compact(_choosy(each).state).state for each in (network, again, other)]
    assert compact_model(small[0]) == compact_model(small[1]) != compact_model(small[2])


def test_a_model_says_what_it_takes_and_gives() -> None:
    network = _choosy(dense())

    models = [onnx.load_from_string(plain_model(network.state))]
    models.append(onnx.load_from_string(compact_model(compact(network.state).state)))

    for model in models:
        onnx.checker.check_model(model, full_check=True)
        (taken,), (given_back,) = model.graph.input, model.graph.output
        dimensions = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (taken, given_back)]
        assert (taken.name, given_back.name) == ("images", "logits")
        assert dimensions == [["N", 1, 28, 28], ["N", 10]]
        assert (model.producer_name, model.doc_string) == ("secateur", "")
    kinds = [[node.op_type for node in model.graph.node] for model in models]
    linears = ["Flatten", "Gemm", "Gemm"]
    normalized, plain = ["Conv", "BatchNormalization", "Relu"], ["Conv", "Relu"]
    assert kinds[0] == [*normalized, *normalized, "MaxPool", *normalized, "MaxPool", *linears]
    assert kinds[1] == [*plain, *plain, "MaxPool", *plain, "MaxPool", "Flatten", "Gather", "Gemm", "Gemm"]


def test_a_model_holds_every_weight_by_its_key() -> None:
    small = compact(_choosy(dense()).state)

    held = onnx.load_from_string(compact_model(small.state)).graph.initializer

    assert {tensor.name: tuple(tensor.dims) for tensor in held} == {
        name: tuple(tensor.shape) for name, tensor in small.state.items()
    }
    assert INPUTS in {tensor.name for tensor in held}


def test_a_state_that_lacks_a_tensor_makes_no_model() -> None:
    state = dense().state
    del state["fc1.bias"]

    with pytest.raises(onnx.checker.ValidationError, match=r"fc1\.bias"):
        plain_model(state)


def test_latencies_are_numbers_of_milliseconds() -> None:
    network = dense()
    models = {"plain": plain_model(network.state), "compact": compact_model(compact(network.state).state)}

    measured = latencies(models, 2, runs=30)

    assert list(measured) == ["plain", "compact"]
    for median, p95, runs in measured.values():
        assert 0 < median <= p95 < math.inf
        assert runs == 30


def test_a_time_that_is_up_still_leaves_a_round() -> None:
    measured = latencies({"plain": plain_model(dense().state)}, 1, threads=2, seconds=0)["plain"]

    assert measured.runs == 10
    assert 0 < measured.median_ms <= measured.p95_ms


SCRIPT = """
import sys
from pathlib import Path
from worker.engine import onnx_graph
onnx_graph.latencies({"model": Path(sys.argv[1]).read_bytes()}, 1, runs=1)
"""


def test_onnx_runtime_keeps_no_id_of_the_machine_and_sends_nothing_home(tmp_path: Path) -> None:
    model, home = tmp_path / "model.onnx", tmp_path / "home"
    model.write_bytes(plain_model(dense().state))
    home.mkdir()
    names = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")
    environment = {name: value for name, value in os.environ.items() if name not in names}

    command = [sys.executable, "-c", SCRIPT, str(model)]
    environment |= {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home)}
    subprocess.run(command, env=environment, timeout=60, check=True)

    assert list(home.iterdir()) == []
