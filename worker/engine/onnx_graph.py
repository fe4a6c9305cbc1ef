"""ONNX models written node by node: milliseconds, no tracing, and the same bytes for the same state.

Input `images`, float32 [N, channels, height, width], N free; output `logits`, float32
[N, classes]. Weights bear their state-dict keys.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from app.contract.network import KERNELS, MNIST_SHAPE, POOLED, DataShape
from worker.engine.compact import INPUTS
from worker.engine.model import EPSILON

# Official builds send Microsoft what they run and keep an id of the machine in HOME, unless told so before they load
# (https://github.com/microsoft/onnxruntime/pull/27379; the second name is that of other versions).
os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "ORT_TELEMETRY_DISABLED": "1"}
import onnxruntime

OPSET = 17
IR_VERSION = 8
"""The first to have opset 17; runtimes refuse versions newer than themselves."""

RUNS_A_ROUND = 10
SECONDS_A_ROUND = 0.2
"""Of one model; the widest networks take longer for a single run."""

State = Mapping[str, Tensor]
Images = NDArray[np.float32]


class Latency(NamedTuple):
    """Of one batch, in milliseconds; the 95th percentile interpolates between runs."""

    median_ms: float
    p95_ms: float
    runs: int


def plain_model(state: State, shape: DataShape = MNIST_SHAPE) -> bytes:
    """Of a `Cnn`'s state dict on the CPU, zeros in place: what pruning alone gives a runtime."""
    return _model(_convolutions(normalized=True) + _linears(gathers=False), state, shape)


def compact_model(state: State, shape: DataShape = MNIST_SHAPE) -> bytes:
    """Of a compact state dict: no BatchNorm, and a Gather where fc1 reads chosen inputs."""
    return _model(_convolutions(normalized=False) + _linears(gathers=INPUTS in state), state, shape)


def _convolutions(*, normalized: bool) -> list[onnx.NodeProto]:
    nodes, value = [], "images"
    for index, (kernel, pooled) in enumerate(zip(KERNELS, POOLED, strict=True), start=1):
        layer, pads = f"layer{index}", [kernel // 2] * 4
        nodes.append(_node("Conv", [value, *_parameters(f"{layer}.0")], f"{layer}.conv", pads=pads))
        if normalized:
            statistics = [f"{layer}.1.running_mean", f"{layer}.1.running_var"]
            inputs = [f"{layer}.conv", *_parameters(f"{layer}.1"), *statistics]
            nodes.append(_node("BatchNormalization", inputs, f"{layer}.norm", epsilon=EPSILON))
        nodes.append(_node("Relu", [nodes[-1].output[0]], f"{layer}.relu"))
        if pooled:
            pooling = _node("MaxPool", [f"{layer}.relu"], f"{layer}.pool", kernel_shape=[2, 2], strides=[2, 2])
            nodes.append(pooling)
        value = nodes[-1].output[0]
    return [*nodes, _node("Flatten", [value], "features", axis=1)]


def _linears(*, gathers: bool) -> list[onnx.NodeProto]:
    gather = [_node("Gather", ["features", INPUTS], "chosen", axis=1)] if gathers else []
    hidden = _node("Gemm", ["chosen" if gathers else "features", *_parameters("fc1")], "hidden", transB=1)
    return [*gather, hidden, _node("Gemm", ["hidden", *_parameters("fc2")], "logits", transB=1)]


def _parameters(layer: str) -> list[str]:
    return [f"{layer}.weight", f"{layer}.bias"]


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=output, **attributes)


def _model(nodes: Sequence[onnx.NodeProto], state: State, shape: DataShape) -> bytes:
    image = [shape.channels, shape.height, shape.width]
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["N", *image])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", shape.classes])],
        [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in state.items() if name in read],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, producer_name="secateur", opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


@torch.no_grad()
def check(model: bytes, network: nn.Module, images: Tensor, *, threads: int = 1) -> float:
    """Greatest absolute difference of a logit between ONNX Runtime and `network`, as it stands, on the CPU.

    `threads` are ONNX Runtime's; PyTorch keeps its own number.
    """
    ours = _session(model, threads).run(["logits"], {"images": images.numpy()})[0]
    return float((torch.from_numpy(ours) - network(images)).abs().max())


def latencies(
    models: Mapping[str, bytes],
    batch: int,
    shape: DataShape = MNIST_SHAPE,
    *,
    threads: int = 1,
    runs: int = 200,
    seconds: float = 5.0,
) -> dict[str, Latency]:
    """How long each model takes for `batch` images in ONNX Runtime on the CPU, on this machine as busy as it is.

    The models take turns, in an order that reverses from round to round, so that a change of the machine's load or
    clock meets all alike. It ends with the first round after `runs` runs of each or after `seconds` in all.
    """
    size = batch, shape.channels, shape.height, shape.width
    images = np.random.default_rng(0).random(size, dtype=np.float32)
    sessions = [(name, _session(model, threads)) for name, model in models.items()]
    for _, session in sessions:
        _times(session, images)  # warms up
    times: dict[str, list[float]] = {name: [] for name in models}
    deadline, done = time.perf_counter() + seconds, False
    while not done:
        for name, session in sessions:
            times[name] += _times(session, images)
        sessions.reverse()
        done = min(map(len, times.values())) >= runs or time.perf_counter() >= deadline
    return {name: _summary(measured) for name, measured in times.items()}


def _times(session: onnxruntime.InferenceSession, images: Images) -> list[float]:
    """Milliseconds of each run of a round."""
    marks = [time.perf_counter()]
    while len(marks) <= RUNS_A_ROUND and marks[-1] - marks[0] < SECONDS_A_ROUND:
        session.run(["logits"], {"images": images})
        marks.append(time.perf_counter())
    return [1000 * (end - start) for start, end in pairwise(marks)]


def _summary(times: Sequence[float]) -> Latency:
    median, p95 = np.percentile(times, [50, 95])
    return Latency(float(median), float(p95), len(times))


def _session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Threads that spin while they wait would take the processor from the model whose turn it is.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
