"""The single door: a resolved spec in, a folder of artifacts and a short result out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from app.contract.datasets import DatasetName
from app.contract.report import Accuracy, EpochMetrics, Receipt, Report, Resume
from app.contract.result import CompareResult, NetworkResult
from app.contract.spec import CheckpointRef, CompareSpec, ModelSpec, PruneSpec, Pruning, TrainingSpec, TrainSpec
from app.contract.status import Phase
from worker.engine import checkpoint, device
from worker.engine.artifacts import Outcome, network_files, parameters_of
from worker.engine.compare import comparison_files, read_jobs
from worker.engine.data import Dataset, DatasetStore
from worker.engine.errors import InvalidCheckpoint, translated
from worker.engine.evaluate import evaluate
from worker.engine.export import file_sha256, publish, versions
from worker.engine.model import Cnn, fresh
from worker.engine.observer import Observer
from worker.engine.pruning import Mask, prune
from worker.engine.resources import refuse_what_does_not_fit
from worker.engine.resume import Origin, Recovery
from worker.engine.seeding import reproducible
from worker.engine.train import train

Inputs = Mapping[str, Path]
_SILENT = Observer()
_FRESH = Recovery()


def run(
    spec: TrainSpec | PruneSpec | CompareSpec,
    *,
    datasets: DatasetStore,
    inputs: Inputs,
    out: Path,
    observer: Observer = _SILENT,
    recovery: Recovery = _FRESH,
) -> NetworkResult | CompareResult:
    """Run a resolved spec and write its artifacts into `out`, an existing empty folder; the manifest comes last.

    `inputs` leads from each job that the spec names to the folder with that job's artifacts. A training goes on from
    the newest checkpoint of `recovery` that is whole. Raises `EngineError`, or whatever the observer raised.
    """
    with translated():
        if isinstance(spec, CompareSpec):
            return _compare(spec, _Stage(torch.device("cpu"), datasets, inputs, out, observer, recovery))
        # A prune job has no wishes about its device.
        wanted = spec.training.device if isinstance(spec, TrainSpec) else "auto"
        stage = _Stage(device.choose(wanted), datasets, inputs, out, observer, recovery)
        with reproducible(stage.device):
            return _train(spec, stage) if isinstance(spec, TrainSpec) else _prune(spec, stage)


def warm_up() -> None:
    """One step of a tiny training: PyTorch loads much of itself only then, two seconds that no job should wait for."""
    chosen = device.choose("auto")
    with reproducible(chosen):
        images, labels = torch.zeros(2, 1, 28, 28, device=chosen), torch.zeros(2, dtype=torch.int64, device=chosen)
        train(Cnn((1, 1, 1), 1).to(chosen), images, labels, TrainingSpec(epochs=1), None, _SILENT)


@dataclass(frozen=True, eq=False)
class _Stage:
    """What a run has at hand."""

    device: torch.device
    datasets: DatasetStore
    inputs: Inputs
    out: Path
    observer: Observer
    recovery: Recovery
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A network that is ready to be measured and pruned, and where it came from."""

    model: ModelSpec
    network: nn.Module
    dataset: Dataset
    history: tuple[EpochMetrics, ...] | None
    read: Mapping[str, str]
    resumes: tuple[Resume, ...] = ()


def _train(spec: TrainSpec, stage: _Stage) -> NetworkResult:
    dataset = _load_data(spec.dataset.name, stage)
    refuse_what_does_not_fit(spec.model, spec.training.batch_size, stage.device, stage.out)
    network, read = fresh(spec.model, spec.training.seed), dict[str, str]()
    if spec.initial is not None:
        _, state, read = _read_checkpoint(spec.initial, stage.inputs, spec.model)
        network.load_state_dict(state)
    stage.observer.enter(Phase.TRAINING)
    network.to(stage.device)
    images, labels = dataset.train_images.to(stage.device), dataset.train_labels.to(stage.device)
    resumed = stage.recovery.latest(dataset.sha256)
    resumes = stage.recovery.resumes(resumed, math.ceil(len(labels) / spec.training.batch_size))
    if resumed is not None:
        stage.observer.record("resumed", {"step": resumes[-1].step})
        torch.set_num_threads(resumed.origin.threads)  # with more or fewer, sums come out in another order
    origin = Origin(
        dataset.sha256, resumes, device.name_of(stage.device), torch.get_num_threads(), str(torch.__version__)
    )
    history = train(network, images, labels, spec.training, spec.regularization, stage.observer, origin, resumed)
    return _conclude(spec, _Candidate(spec.model, network, dataset, history, read, resumes), stage)


def _prune(spec: PruneSpec, stage: _Stage) -> NetworkResult:
    if spec.dataset is None:
        raise ValueError("the prune spec is not resolved: its dataset is still to be taken from the source")
    dataset = _load_data(spec.dataset.name, stage)
    model, state, read = _read_checkpoint(spec.source, stage.inputs, None)
    refuse_what_does_not_fit(model, None, stage.device, stage.out)
    network = Cnn(model.channels, model.hidden).to(stage.device)
    network.load_state_dict(state)
    return _conclude(spec, _Candidate(model, network, dataset, None, read), stage)


def _compare(spec: CompareSpec, stage: _Stage) -> CompareResult:
    stage.observer.enter(Phase.REPORTING)
    comparison, read = read_jobs(spec.jobs, stage.inputs)
    publish(stage.out, comparison_files(comparison), _receipt(spec, None, None, read, (), stage))
    return CompareResult(kind="compare", jobs=spec.jobs)


def _load_data(name: DatasetName, stage: _Stage) -> Dataset:
    stage.observer.enter(Phase.PREPARING_DATA)
    return stage.datasets.load(name)


def _read_checkpoint(
    ref: CheckpointRef, inputs: Inputs, model: ModelSpec | None
) -> tuple[ModelSpec, dict[str, Tensor], dict[str, str]]:
    """The checkpoint's widths and state, and its sha256 for the receipt."""
    path = inputs[ref.job_id] / ref.artifact
    if not path.is_file():
        raise InvalidCheckpoint(f"{ref.artifact} of {ref.job_id} is missing: run that job again")
    found, state = checkpoint.load(path, model)
    return found, state, {f"{ref.job_id}/{ref.artifact}": file_sha256(path)}


def _conclude(spec: TrainSpec | PruneSpec, candidate: _Candidate, stage: _Stage) -> NetworkResult:
    """Measure, prune, measure again, publish."""
    network, before = candidate.network, _state(candidate.network)
    accuracy_before = accuracy_after = _measure(network, candidate.dataset, "before_pruning", stage)
    after = before
    if spec.pruning is not None:
        stage.observer.enter(Phase.PRUNING)
        after = _pruned(before, spec.pruning)
        network.load_state_dict(after)
        accuracy_after = _measure(network, candidate.dataset, "after_pruning", stage)
    stage.observer.enter(Phase.REPORTING)
    outcome = Outcome(candidate.model, before, after, accuracy_before, accuracy_after)
    report, files = network_files(spec, outcome, candidate.history)
    if spec.pruning is not None:
        stage.observer.record("pruned", report.total.model_dump(mode="json", include=_PRUNED_FACTS))
    seed = spec.training.seed if isinstance(spec, TrainSpec) else None
    publish(stage.out, files, _receipt(spec, seed, candidate.dataset, candidate.read, candidate.resumes, stage))
    return _result(report, candidate.dataset, stage)


_PRUNED_FACTS = {"nonzero_before", "nonzero_after", "sparsity", "emptied"}


def _state(network: nn.Module) -> dict[str, Tensor]:
    """A copy on the CPU, which later changes of the network leave alone."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _pruned(state: Mapping[str, Tensor], pruning: Pruning) -> dict[str, Tensor]:
    tensors = parameters_of(state)
    return prune(pruning, tensors, Mask.full(tensors)).apply(state)


def _measure(network: nn.Module, dataset: Dataset, stage_name: str, stage: _Stage) -> Accuracy:
    stage.observer.enter(Phase.EVALUATING)
    images, labels = dataset.test_images.to(stage.device), dataset.test_labels.to(stage.device)
    accuracy = evaluate(network, images, labels, stage.observer)
    stage.observer.record("evaluated", {"stage": stage_name} | accuracy.model_dump(mode="json"))
    return accuracy


def _result(report: Report, dataset: Dataset, stage: _Stage) -> NetworkResult:
    return NetworkResult(
        kind=report.kind,
        accuracy_before=report.accuracy_before.accuracy,
        accuracy_after=report.accuracy_after.accuracy,
        parameters=report.total.parameters,
        nonzero_before=report.total.nonzero_before,
        nonzero_after=report.total.nonzero_after,
        sparsity=report.total.sparsity,
        emptied=report.total.emptied,
        threshold=report.threshold,
        dataset=dataset.name,
        dataset_sha256=dataset.sha256,
        device=stage.device.type,
        engine_seconds=stage.seconds,
    )


def _receipt(
    spec: TrainSpec | PruneSpec | CompareSpec,
    seed: int | None,
    dataset: Dataset | None,
    read: Mapping[str, str],
    resumes: tuple[Resume, ...],
    stage: _Stage,
) -> Receipt:
    return Receipt(
        spec=spec.model_dump(mode="json"),
        seed=seed,
        dataset=dataset and dataset.name,
        dataset_sha256=dataset and dataset.sha256,
        inputs=dict(read),
        versions=versions(),
        device=stage.device.type,
        device_name=device.name_of(stage.device),
        threads=torch.get_num_threads(),
        attempt=stage.recovery.attempt,
        resumes=resumes,
        duration_seconds=stage.seconds,
    )
