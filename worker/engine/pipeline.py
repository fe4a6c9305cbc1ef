"""The single door: a resolved spec in, a folder of artifacts and a short result out."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch

from app.contract.artifacts import DATASET
from app.contract.network import Ends
from app.contract.reference import CheckpointRef
from app.contract.report import Receipt, Report, Resume, Sensitivity
from app.contract.result import CompareResult, DatasetResult, ImportResult, NetworkResult, Result
from app.contract.spec import (
    CompareSpec,
    DatasetImportSpec,
    DatasetSpec,
    ImportSpec,
    ModelSpec,
    PruneSpec,
    SensitivitySpec,
    StoredSpec,
    TrainSpec,
    UploadSpec,
    taught,
)
from app.contract.status import Phase
from app.contract.training import FineTuningSpec, TrainingSpec
from worker.engine import checkpoint, dataset_file, device, memory
from worker.engine.artifacts import Outcome, network_files, parameters_of
from worker.engine.compare import comparison_files, read_jobs
from worker.engine.data import Dataset, DatasetStore, digest
from worker.engine.dataset_upload import read_apart
from worker.engine.errors import InvalidCheckpoint, translated
from worker.engine.evidence import PROBES
from worker.engine.execute import AFTER, BEFORE, PRUNED, Candidate, execute
from worker.engine.export import file_sha256, publish, versions
from worker.engine.importing import read_upload
from worker.engine.model import Cnn, fresh
from worker.engine.observer import Observer
from worker.engine.plan import Course, plan
from worker.engine.progress import Progress, state_of
from worker.engine.pruning import Mask
from worker.engine.resources import (
    refuse_dataset_that_does_not_fit,
    refuse_import_that_does_not_fit,
    refuse_what_does_not_fit,
)
from worker.engine.resume import Origin, Recovery
from worker.engine.seeding import reproducible
from worker.engine.sensitivity import sensitivity
from worker.engine.train import Examples, train

Inputs = Mapping[str, Path]
_SILENT = Observer()
_FRESH = Recovery()


def run(
    spec: StoredSpec,
    *,
    datasets: DatasetStore,
    inputs: Inputs,
    out: Path,
    upload: Path | None = None,
    observer: Observer = _SILENT,
    recovery: Recovery = _FRESH,
) -> Result:
    """Run a resolved spec and write its artifacts into `out`, an existing empty folder; the manifest comes last.

    `inputs` leads from each job that the spec names to the folder with that job's artifacts; `upload` is the file that
    an import is about. A training goes on from the newest checkpoint of `recovery` that is whole. Raises `EngineError`,
    or whatever the observer raised.
    """
    memory.keep_freed()
    with translated():
        stage = _Stage(torch.device("cpu"), datasets, inputs, out, observer, recovery)
        if isinstance(spec, UploadSpec):
            if upload is None:
                raise ValueError("an import needs the file that was uploaded")
            return _import(spec, upload, stage) if isinstance(spec, ImportSpec) else _receive(spec, upload, stage)
        if isinstance(spec, CompareSpec):
            return _compare(spec, stage)
        # A prune job has no wishes about its device.
        wanted = spec.training.device if isinstance(spec, TrainSpec) else "auto"
        stage = replace(stage, device=device.choose(wanted))
        with reproducible(stage.device):
            return _train(spec, stage) if isinstance(spec, TrainSpec) else _prune(spec, stage)


def warm_up() -> None:
    """One step of a training with all defaults: PyTorch and the GPU's libraries load much of themselves only then,
    seconds that no job should wait for."""
    memory.keep_freed()
    chosen, course = device.choose("auto"), Course(TrainingSpec(epochs=1))
    with reproducible(chosen):
        count = course.settings.batch_size
        images, labels = (
            torch.zeros(count, 1, 28, 28, device=chosen),
            torch.zeros(count, dtype=torch.int64, device=chosen),
        )
        examples = Examples(images, labels, images[:0], labels[:0])
        network = fresh(ModelSpec(), seed=0)
        device.place(network, chosen)
        train(network, examples, course, Progress(), _SILENT)


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


def _train(spec: TrainSpec, stage: _Stage) -> NetworkResult:
    dataset = _load_data(spec.dataset, stage)
    if spec.initial is None:
        begun = _Network(spec.model, fresh(spec.model, spec.training.seed, dataset.shape.ends), {})
    else:
        begun = _read_network(spec.initial, stage.inputs, dataset.shape.ends, spec.model)
    return _carry_out(spec, begun, dataset, stage)


def _prune(spec: PruneSpec, stage: _Stage) -> NetworkResult:
    if spec.dataset is None:
        raise ValueError("the prune spec is not resolved: its dataset is still to be taken from the source")
    dataset = _load_data(spec.dataset, stage)
    begun = _read_network(spec.source, stage.inputs, dataset.shape.ends)
    # What an earlier pruning left at zero stays there. The dense network of a job has lost nothing yet.
    pruned = spec.source.artifact == "model.safetensors"
    mask = Mask.of_nonzero(dict(begun.network.named_parameters())) if pruned else None
    return _carry_out(spec, begun, dataset, stage, mask)


class _Network(NamedTuple):
    """What a run begins with, or learns from."""

    model: ModelSpec
    network: Cnn
    read: Mapping[str, str]
    """The sha256 of the file that it was read from, for the receipt; nothing of new weights."""


def _carry_out(
    spec: TrainSpec | PruneSpec, begun: _Network, dataset: Dataset, stage: _Stage, mask: Mask | None = None
) -> NetworkResult:
    """Train, prune and measure as the spec wants, then publish."""
    assert spec.dataset is not None
    model, shape = begun.model, dataset.shape
    teachers = _teachers(spec, shape.ends, stage)
    stages = plan(spec, model.shapes(shape.ends), mask)
    _refuse_precision(spec, stage.device)
    copied = dataset.train_images.numel() if spec.dataset.validation_images else 0
    if stage.device.type == "cuda":  # all images are to lie there
        copied = dataset.train_images.numel() + dataset.test_images.numel()
    widths = [each.model for each in teachers.values()]
    refuse_what_does_not_fit(model, stages, stage.device, stage.out, shape, copied, widths)
    resumed = stage.recovery.latest(dataset.sha256)
    resumes = stage.recovery.resumes(resumed)
    if resumed is not None:
        stage.observer.record("resumed", {"step": resumes[-1].step})
        torch.set_num_threads(resumed.origin.threads)  # with more or fewer, sums come out in another order
    origin = Origin(
        dataset.sha256, resumes, device.name_of(stage.device), torch.get_num_threads(), str(torch.__version__)
    )
    networks = (begun, *teachers.values())
    for each in networks:
        device.place(each.network, stage.device)
    taught_by = {ref: each.network for ref, each in teachers.items()}
    candidate = Candidate(begun.network, dataset, spec.dataset.validation_images, stage.device, taught_by)
    progress = resumed.progress if resumed is not None else Progress(mask=mask)
    execute(stages, candidate, progress, stage.observer, origin, resumed)
    read = {name: sha256 for each in networks for name, sha256 in each.read.items()}
    if spec.dataset.id is not None:
        read[f"{spec.dataset.id}/{DATASET}"] = file_sha256(stage.inputs[spec.dataset.id] / DATASET)
    return _publish(spec, model, candidate, progress, read, resumes, stage)


def _refuse_precision(spec: TrainSpec | PruneSpec, on: torch.device) -> None:
    courses = (spec.training if isinstance(spec, TrainSpec) else None, spec.fine_tuning)
    for course in courses:
        if course is not None:
            device.refuse_what_it_lacks(course.precision, on)


def _teachers(spec: TrainSpec | PruneSpec, ends: Ends, stage: _Stage) -> Mapping[CheckpointRef, _Network]:
    """Of all courses; they look at images and are not trained."""
    refs = dict.fromkeys(each.teacher for each in taught(spec))
    teachers = {ref: _read_network(ref, stage.inputs, ends) for ref in refs}
    for each in teachers.values():
        each.network.eval().requires_grad_(False)
    return teachers


def _publish(
    spec: TrainSpec | PruneSpec,
    model: ModelSpec,
    candidate: Candidate,
    progress: Progress,
    read: Mapping[str, str],
    resumes: tuple[Resume, ...],
    stage: _Stage,
) -> NetworkResult:
    told = _sensitivity(spec.sensitivity, candidate, progress, stage) if spec.sensitivity is not None else None
    stage.observer.enter(Phase.REPORTING)
    after, accuracies, predictions = state_of(candidate.network), progress.accuracies, progress.predictions
    last = next(point for point in (AFTER, PRUNED, BEFORE) if point in accuracies)
    outcome = Outcome(
        model=model,
        shape=candidate.dataset.shape,
        before=progress.dense or after,
        after=after,
        mask=progress.mask,
        thresholds=progress.thresholds,
        accuracy_before=accuracies[BEFORE],
        accuracy_pruned=accuracies.get(PRUNED),
        accuracy_after=accuracies[last],
        labels=candidate.dataset.test_labels,
        predictions_before=predictions[BEFORE],
        probes=candidate.dataset.test_images[:PROBES],
        predictions_after=predictions[last],
        sensitivity=told,
    )
    report, files = network_files(spec, outcome, progress.history)
    if spec.pruning is not None:
        stage.observer.record("pruned", report.total.model_dump(mode="json", include=_PRUNED_FACTS))
    course = spec.training if isinstance(spec, TrainSpec) else spec.fine_tuning
    dataset = _Content(candidate.dataset.name, candidate.dataset.sha256)
    publish(stage.out, files, _receipt(spec, stage, read, dataset, course=course, resumes=resumes))
    return _result(report, candidate.dataset, stage)


def _sensitivity(spec: SensitivitySpec, candidate: Candidate, progress: Progress, stage: _Stage) -> Sensitivity:
    """Of the network as it was when its pruning began."""
    stage.observer.enter(Phase.EVALUATING)
    network, examples = copy.deepcopy(candidate.network), candidate.examples()
    if progress.dense is not None:
        network.load_state_dict(progress.dense)
    validation = len(examples.validation_labels) > 0
    test = candidate.dataset.test_images.to(stage.device), candidate.dataset.test_labels.to(stage.device)
    images, labels = (examples.validation_images, examples.validation_labels) if validation else test
    return sensitivity(network, spec, images, labels, validation=validation, observer=stage.observer)


_PRUNED_FACTS = {"nonzero_before", "nonzero_after", "sparsity", "emptied"}


def _compare(spec: CompareSpec, stage: _Stage) -> CompareResult:
    stage.observer.enter(Phase.REPORTING)
    comparison, read = read_jobs(spec.jobs, stage.inputs)
    publish(stage.out, comparison_files(comparison), _receipt(spec, stage, read))
    return CompareResult(kind="compare", jobs=spec.jobs)


def _import(spec: ImportSpec, upload: Path, stage: _Stage) -> ImportResult:
    stage.observer.enter(Phase.IMPORTING)
    refuse_import_that_does_not_fit(spec.size, stage.out)
    (model, ends), state = read_upload(spec, upload, stage.out, stage.observer)
    result = ImportResult(
        kind="import",
        channels=model.channels,
        hidden=model.hidden,
        image_channels=ends.channels,
        features=ends.features,
        classes=ends.classes,
        parameters=model.parameters(ends),
        nonzero=sum(int(tensor.count_nonzero()) for tensor in parameters_of(state).values()),
        format=spec.format,
        size=spec.size,
        sha256=spec.sha256,
    )
    stage.observer.record("imported", result.model_dump(mode="json", include=_IMPORTED_FACTS))
    files = {"model.safetensors": checkpoint.to_safetensors(state), "model.pt": checkpoint.to_torch(state)}
    publish(stage.out, files, _receipt(spec, stage, {"upload": file_sha256(upload)}))
    return result


_IMPORTED_FACTS = {"channels", "hidden", "parameters", "nonzero"}


def _receive(spec: DatasetImportSpec, upload: Path, stage: _Stage) -> DatasetResult:
    stage.observer.enter(Phase.IMPORTING)
    kept = stage.out / DATASET
    read_apart(spec, upload, kept, stage.observer.check)
    # Read anew: what the other process was made to write is believed no more than the upload.
    arrays, about = dataset_file.read(kept)
    result = DatasetResult(
        kind="dataset",
        format=about.format,
        facts=dataset_file.facts_of(arrays),
        class_names=about.class_names,
        dataset_sha256=digest(arrays),
        size=spec.size,
        sha256=spec.sha256,
    )
    stage.observer.record("imported", result.model_dump(mode="json", include={"format", "facts", "dataset_sha256"}))
    content = _Content(None, result.dataset_sha256)
    publish(stage.out, {}, _receipt(spec, stage, {"upload": file_sha256(upload)}, content), written=[DATASET])
    return result


def _load_data(dataset: DatasetSpec, stage: _Stage) -> Dataset:
    stage.observer.enter(Phase.PREPARING_DATA)
    if dataset.name is not None:
        return stage.datasets.load(dataset.name)
    assert dataset.id is not None  # one of the two
    path = stage.inputs[dataset.id] / DATASET
    refuse_dataset_that_does_not_fit(path)
    return stage.datasets.read(dataset.id, path)


def _read_network(ref: CheckpointRef, inputs: Inputs, ends: Ends, model: ModelSpec | None = None) -> _Network:
    """The network of a checkpoint, with those ends and of the widths `model`; None takes the checkpoint's own."""
    path = inputs[ref.job_id] / ref.artifact
    if not path.is_file():
        raise InvalidCheckpoint(f"{ref.artifact} of {ref.job_id} is missing: run that job again")
    (found, _), state = checkpoint.load(path, model, ends)
    network = Cnn(found.channels, found.hidden, ends)
    network.load_state_dict(state)
    return _Network(found, network, {f"{ref.job_id}/{ref.artifact}": file_sha256(path)})


def _result(report: Report, dataset: Dataset, stage: _Stage) -> NetworkResult:
    return NetworkResult(
        kind=report.kind,
        image_channels=dataset.shape.channels,
        features=dataset.shape.features,
        classes=dataset.shape.classes,
        accuracy_before=report.accuracy_before.accuracy,
        accuracy_after=report.accuracy_after.accuracy,
        parameters=report.total.parameters,
        nonzero_before=report.total.nonzero_before,
        nonzero_after=report.total.nonzero_after,
        sparsity=report.total.sparsity,
        emptied=report.total.emptied,
        threshold=report.threshold,
        compact_parameters=report.compact and report.compact.parameters,
        dataset=dataset.name,
        dataset_sha256=dataset.sha256,
        device=stage.device.type,
        engine_seconds=stage.seconds,
    )


class _Content(NamedTuple):
    """What a data set is called, and its digest."""

    name: str | None = None
    sha256: str | None = None


_NO_DATA = _Content()


def _receipt(
    spec: StoredSpec,
    stage: _Stage,
    read: Mapping[str, str],
    dataset: _Content = _NO_DATA,
    *,
    course: FineTuningSpec | None = None,
    resumes: tuple[Resume, ...] = (),
) -> Receipt:
    return Receipt(
        spec=spec.model_dump(mode="json"),
        seed=None if course is None else course.seed,
        precision=None if course is None else course.precision,
        dataset=dataset.name,
        dataset_sha256=dataset.sha256,
        inputs=dict(read),
        versions=versions(),
        device=stage.device.type,
        device_name=device.name_of(stage.device),
        threads=torch.get_num_threads(),
        attempt=stage.recovery.attempt,
        resumes=resumes,
        duration_seconds=stage.seconds,
    )
