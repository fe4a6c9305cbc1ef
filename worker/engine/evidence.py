"""What a finished network is worth outside of PyTorch: its compact form, its ONNX models, and how long they take."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata

import torch
from torch import Tensor, nn

from app.contract.network import DataShape
from app.contract.report import ClassReport, CompactReport, Latency, LatencyReport
from app.contract.spec import ModelSpec
from worker.engine import device
from worker.engine.compact import build, compact, to_safetensors
from worker.engine.model import Cnn
from worker.engine.onnx_graph import check, compact_model, latencies, plain_model
from worker.engine.packed import pack

BATCHES = {1: 200, 64: 50}
"""Batch sizes that latency is measured at, and runs of each model."""

SECONDS = 2.0
"""For each batch size at most, unless told otherwise."""

TOLERANCE = 1e-3
"""Of the largest logit: rounding stays a hundred times below it, a wrong graph far above. A network that is itself ill
conditioned may differ by as much more as PyTorch does from itself in double precision."""

_SLACK = 100

PROBES = 32
"""Images on which that is looked at."""


@dataclass(frozen=True, eq=False)
class Exports:
    """Files by name, and what there is to say of them."""

    files: Mapping[str, bytes]
    compact: CompactReport
    latency: LatencyReport


@contextmanager
def _one_thread() -> Iterator[None]:
    """Logits are rounded by the number of threads, and these files are to be the same wherever they are made."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
@_one_thread()
def exports(
    model: ModelSpec,
    shape: DataShape,
    dense: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    probes: Tensor,
    *,
    seconds: float = SECONDS,
) -> Exports:
    """Of the network `state`, whose widths are those of `model`, for images of that shape, on the CPU; `dense` is what
    latency is told against, measured for so many seconds at each batch size at most.

    Every ONNX model is run against PyTorch first, on the images `probes`. Raises RuntimeError when they disagree, which
    is a bug.
    """
    small = compact(state, shape)
    onnx = {
        "dense": plain_model(dense, shape),
        "model": plain_model(state, shape),
        "compact": compact_model(small.state, shape),
    }
    plain = _loaded(model, shape, state)
    differences = {
        "model.onnx": check(onnx["model"], plain, probes),
        "compact.onnx": check(onnx["compact"], plain, probes),
        "compact.safetensors": _difference(build(small)(probes), plain(probes)),
    }
    refuse_disagreement(differences, plain, probes)
    return Exports(
        {
            "compact.safetensors": to_safetensors(small),
            "compact.onnx": onnx["compact"],
            "model.onnx": onnx["model"],
            "packed.npz": pack(small.state),
        },
        CompactReport(
            channels=small.widths.channels,
            hidden=small.widths.hidden,
            inputs=small.widths.inputs,
            parameters=small.parameters,
            nonzero=small.nonzero,
            macs=small.macs,
            macs_effective=small.macs_effective,
            differences=differences,
        ),
        _latency({"dense": onnx["dense"], "compact": onnx["compact"]}, shape, seconds),
    )


def _loaded(model: ModelSpec, shape: DataShape, state: Mapping[str, Tensor]) -> nn.Module:
    network = Cnn(model.channels, model.hidden, shape.ends)
    network.load_state_dict(dict(state))
    return network.eval()


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@torch.no_grad()
def refuse_disagreement(differences: Mapping[str, float], network: nn.Module, images: Tensor) -> None:
    """Raises RuntimeError when a file's logits differ from the network's on these images by more than rounding does."""
    single, double = network(images), copy.deepcopy(network).double()(images.double())
    largest = max(1.0, float(double.abs().max()))
    allowed = max(TOLERANCE * largest, _SLACK * _difference(single.double(), double))
    for name, difference in differences.items():
        if not difference <= allowed:
            raise RuntimeError(f"{name} computes another function: logits differ by {difference} of {largest}")


def _latency(models: Mapping[str, bytes], shape: DataShape, seconds: float) -> LatencyReport:
    """On one thread: what a small network is served with, and what other load on the machine disturbs least."""
    measured = []
    for batch, runs in BATCHES.items():
        for name, found in latencies(models, batch, shape, threads=1, runs=runs, seconds=seconds).items():
            measured.append(Latency(model=name, batch=batch, **found._asdict()))
    cpu = device.name_of(torch.device("cpu"))
    return LatencyReport(
        runtime=f"onnxruntime {metadata.version('onnxruntime')}", threads=1, cpu=cpu, measured=tuple(measured)
    )


def class_reports(labels: Tensor, before: Tensor, after: Tensor) -> tuple[ClassReport, ...]:
    """For each class among the test images [N], how many of its images each network knows."""
    return tuple(_class_report(label, labels == label, before, after) for label in torch.unique(labels).tolist())


def _class_report(label: int, members: Tensor, before: Tensor, after: Tensor) -> ClassReport:
    total, known = int(members.sum()), [int((members & (told == label)).sum()) for told in (before, after)]
    return ClassReport(
        label=label,
        total=total,
        correct_before=known[0],
        correct_after=known[1],
        accuracy_before=known[0] / total,
        accuracy_after=known[1] / total,
    )
