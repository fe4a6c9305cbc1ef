"""Runs the jobs of the recipe through the engine, each in a folder of its own; what is there is not run again."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import JsonValue

from app.contract.spec import checkpoints
from benchmarks.frontier.recipe import Chain, NetworkSpec, job_id, random_source
from worker.engine import checkpoint, pipeline
from worker.engine.data import DatasetStore
from worker.engine.observer import Observer
from worker.engine.seeding import generator

MODEL = "model.safetensors"


def carry_out(chain: Chain, root: Path, datasets: DatasetStore) -> None:
    """Run those jobs of the chain that are not done yet."""
    *before, last = chain.specs
    for spec in before:
        _run(spec, root, datasets)
    if chain.counts_of is not None:
        _run(chain.counts_of, root, datasets)
        _mask_at_random(chain, chain.counts_of, root)
    _run(last, root, datasets)


def folder(root: Path, spec: NetworkSpec) -> Path:
    return root / job_id(spec)


def _run(spec: NetworkSpec, root: Path, datasets: DatasetStore) -> None:
    inputs = {ref.job_id: root / ref.job_id for ref in checkpoints(spec)}
    out = folder(root, spec)
    if not out.is_dir():
        with _appearing(out) as scratch:
            pipeline.run(spec, datasets=datasets, inputs=inputs, out=scratch, observer=_Told(out.name))


def _mask_at_random(chain: Chain, counts_of: NetworkSpec, root: Path) -> None:
    """Of the network of the chain's first job, in each tensor as many entries as that other job has left, any."""
    out = root / random_source(chain.specs[0], counts_of, chain.seed)
    if out.is_dir():
        return
    (model, _), dense = checkpoint.load(folder(root, chain.specs[0]) / MODEL)
    _, pruned = checkpoint.load(folder(root, counts_of) / MODEL, model)
    for name, tensor in dense.items():
        if tensor.is_floating_point() and ".running_" not in name:
            order = torch.randperm(tensor.numel(), generator=generator(chain.seed, f"random mask/{name}"))
            tensor.view(-1)[order[int(pruned[name].count_nonzero()) :]] = 0
    with _appearing(out) as scratch:
        (scratch / MODEL).write_bytes(checkpoint.to_safetensors(dense))


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder that gets its name when it is complete, unless another process was faster."""
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    scratch.mkdir(parents=True)
    try:
        yield scratch
        if not out.is_dir():
            scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Told(Observer):
    """A line an epoch, of the validation images alone."""

    def __init__(self, name: str) -> None:
        self._name = name[:12]

    def record(self, type: str, data: dict[str, JsonValue]) -> None:
        if type == "epoch":
            told = f"{data['course']} {data['epoch']}: sparsity {data['sparsity']:.4f}, validation accuracy"
            print(self._name, told, f"{data['validation_accuracy']:.4f}, {data['seconds']:.0f} s", file=sys.stderr)
