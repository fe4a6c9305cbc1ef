"""Counts what pruning did. Everything here can be recounted from the two checkpoints."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from app.contract.network import MNIST_SHAPE, DataShape, layer_positions
from app.contract.pruning import Pruning, place_of
from app.contract.pruning import eligible as is_eligible
from app.contract.report import FileSize, LayerReport, SizeReport, TensorReport, TotalReport
from worker.engine.pruning import Mask


def tensor_reports(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    pruning: Pruning | None,
    mask: Mask | None,
    thresholds: Mapping[str, float | None],
) -> tuple[TensorReport, ...]:
    """`thresholds` are those by which a one-shot pruning chose; a tensor without one may be left out."""
    return tuple(
        _tensor_report(
            name,
            before[name],
            after[name],
            touched=pruning is not None and is_eligible(pruning, name),
            masked=0 if mask is None else mask[name].numel() - mask.kept[name],
            threshold=thresholds.get(name),
        )
        for name in before
    )


def _tensor_report(
    name: str, before: Tensor, after: Tensor, *, touched: bool, masked: int, threshold: float | None
) -> TensorReport:
    place, total, left = place_of(name), before.numel(), int(after.count_nonzero())
    return TensorReport(
        name=name,
        layer=place.layer,
        kind=place.kind,
        layer_kind=place.layer_kind,
        shape=tuple(before.shape),
        total=total,
        eligible=touched,
        nonzero_before=int(before.count_nonzero()),
        nonzero_after=left,
        sparsity=_sparsity(left, total),
        masked=masked,
        threshold=threshold,
        min=float(before.min()),
        max=float(before.max()),
        emptied=left == 0 < int(before.count_nonzero()),
    )


def layer_reports(tensors: Iterable[TensorReport], shape: DataShape = MNIST_SHAPE) -> tuple[LayerReport, ...]:
    """`shape` is that of the data set."""
    by_layer: dict[str, list[TensorReport]] = {}
    for tensor in tensors:
        by_layer.setdefault(tensor.layer, []).append(tensor)
    positions = layer_positions(shape)
    return tuple(_layer_report(name, members, positions.get(name, 0)) for name, members in by_layer.items())


def _layer_report(name: str, tensors: Sequence[TensorReport], positions: int) -> LayerReport:
    total, left = sum(tensor.total for tensor in tensors), sum(tensor.nonzero_after for tensor in tensors)
    weights = [tensor for tensor in tensors if tensor.kind == "weight"]
    return LayerReport(
        name=name,
        layer_kind=tensors[0].layer_kind,
        total=total,
        nonzero_before=sum(tensor.nonzero_before for tensor in tensors),
        nonzero_after=left,
        sparsity=_sparsity(left, total),
        masked=sum(tensor.masked for tensor in tensors),
        macs_dense=positions * sum(tensor.total for tensor in weights),
        macs_nonzero=positions * sum(tensor.nonzero_after for tensor in weights),
    )


def total_report(tensors: Sequence[TensorReport], layers: Sequence[LayerReport]) -> TotalReport:
    parameters, left = sum(tensor.total for tensor in tensors), sum(tensor.nonzero_after for tensor in tensors)
    eligible = [tensor for tensor in tensors if tensor.eligible]
    eligible_total, eligible_left = (sum(tensor.total for tensor in eligible), sum(t.nonzero_after for t in eligible))
    return TotalReport(
        parameters=parameters,
        eligible=eligible_total,
        nonzero_before=sum(tensor.nonzero_before for tensor in tensors),
        nonzero_after=left,
        sparsity=_sparsity(left, parameters),
        eligible_nonzero_before=sum(tensor.nonzero_before for tensor in eligible),
        eligible_nonzero_after=eligible_left,
        eligible_sparsity=_sparsity(eligible_left, eligible_total) if eligible_total else None,
        masked=sum(tensor.masked for tensor in tensors),
        emptied=tuple(tensor.name for tensor in tensors if tensor.emptied),
        macs_dense=sum(layer.macs_dense for layer in layers),
        macs_nonzero=sum(layer.macs_nonzero for layer in layers),
    )


def _sparsity(nonzero: int, total: int) -> float:
    return (total - nonzero) / total


def size_report(dense: bytes, pruned: bytes, exported: Mapping[str, bytes]) -> SizeReport:
    return SizeReport(
        dense=_file_size(dense),
        pruned=_file_size(pruned),
        compact=_file_size(exported["compact.safetensors"]),
        packed=len(exported["packed.npz"]),
        model_onnx=len(exported["model.onnx"]),
        compact_onnx=len(exported["compact.onnx"]),
    )


def _file_size(content: bytes) -> FileSize:
    # Level 9 takes five times as long, a second for a default network that is half zeros, and saves 1 to 3 %.
    return FileSize(raw=len(content), gzipped=len(gzip.compress(content, compresslevel=6, mtime=0)))


def to_csv(tensors: Iterable[TensorReport]) -> str:
    """One row a tensor, the columns of `TensorReport`; a shape is written as 16×16×3×3, no threshold as nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(TensorReport.model_fields), lineterminator="\n")
    writer.writeheader()
    for tensor in tensors:
        writer.writerow(tensor.model_dump(mode="json") | {"shape": "×".join(map(str, tensor.shape))})
    return text.getvalue()
