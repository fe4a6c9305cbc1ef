"""The single door: a resolved spec in, a folder of artifacts and a short result out. A run is made of steps, so that
several can be made at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Required, TypedDict, Unpack

import torch

from app.contract.artifacts import DATASET, MANIFEST
from app.contract.network import Ends
from app.contract.reference import CheckpointRef
from app.contract.report import Resume, Sensitivity
from app.contract.result import CompareResult, DatasetResult, ImportResult, NetworkResult, Result, SweepResult
from app.contract.spec import (
    CompareSpec,
    DatasetSpec,
    ModelSpec,
    PruneSpec,
    SensitivitySpec,
    StoredSpec,
    SweepSpec,
    TrainSpec,
    taught,
)
from app.contract.status import Phase
from app.contract.training import TrainingSpec
from app.contract.uploads import DatasetImportSpec, ImportSpec, UploadSpec
from worker.engine import checkpoint, dataset_file, device, memory, trial
from worker.engine.artifacts import Outcome, parameters_of
from worker.engine.compare import comparison_files, name_of, read_jobs
from worker.engine.data import Dataset, DatasetStore, digest
from worker.engine.dataset_upload import read_apart
from worker.engine.errors import InvalidCheckpoint, translated
from worker.engine.evidence import PROBES, SECONDS
from worker.engine.execute import AFTER, BEFORE, PRUNED, Candidate, Steps, execute
from worker.engine.export import file_sha256, publish
from worker.engine.frontier import MemberJob, frontier_files, read_frontier, result_of
from worker.engine.importing import read_upload
from worker.engine.lockstep import Whole, carry_out
from worker.engine.makers import Made, Making
from worker.engine.model import Cnn, fresh
from worker.engine.observer import Observer
from worker.engine.pixels import scaled
from worker.engine.placed import Placed
from worker.engine.plan import Course, plan
from worker.engine.progress import Progress, state_of
from worker.engine.pruning import Mask
from worker.engine.resources import (
    FLOAT,
    memory_beside,
    refuse_dataset_that_does_not_fit,
    refuse_import_that_does_not_fit,
    refuse_what_does_not_fit,
)
from worker.engine.resume import Origin, Recovery
from worker.engine.seeding import reproducible
from worker.engine.sensitivity import sensitivity
from worker.engine.train import Examples, train
from worker.engine.workplace import Content, Inputs, Workplace, network_result, receipt

_SILENT = Observer()
_FRESH = Recovery()


class Given(TypedDict, total=False):
    """What a run works with."""

    datasets: Required[DatasetStore]
    inputs: Required[Inputs]
    """The folder with the artifacts of each job that the spec names."""
    out: Required[Path]
    """An existing empty folder."""
    upload: Path
    """The file that an import is about."""
    members: Sequence[MemberJob]
    """A sweep's, in their order."""
    observer: Observer
    recovery: Recovery
    """A training goes on from the newest checkpoint of it that is whole."""
    latency_seconds: float
    """For how long at most latency is measured, at each batch size."""


def run(spec: StoredSpec, **given: Unpack[Given]) -> Result:
    """Run a resolved spec and write its artifacts into `out`; the manifest comes last. Raises `EngineError`, or
    whatever the observer raised."""
    whole = Whole(steps(spec, **given))
    carry_out([whole])
    return whole.result()


def steps(
    spec: StoredSpec,
    *,
    datasets: DatasetStore,
    inputs: Inputs,
    out: Path,
    upload: Path | None = None,
    members: Sequence[MemberJob] = (),
    observer: Observer = _SILENT,
    recovery: Recovery = _FRESH,
    placed: Placed | None = None,
    latency_seconds: float = SECONDS,
) -> Steps[Result]:
    """The same for `carry_out`, which does the trainings. Runs that may be trained together share `placed`."""
    memory.keep_freed()
    with translated():
        on_cpu, shared = torch.device("cpu"), placed or Placed()
        at = Workplace(on_cpu, datasets, inputs, out, observer, recovery, shared, latency_seconds)
        if isinstance(spec, UploadSpec):
            if upload is None:
                raise ValueError("an import needs the file that was uploaded")
            return _import(spec, upload, at) if isinstance(spec, ImportSpec) else _receive(spec, upload, at)
        if isinstance(spec, CompareSpec):
            return _compare(spec, at)
        if isinstance(spec, SweepSpec):
            return _sweep(spec, members, at)
        # A prune job has no wishes about its device.
        wanted = spec.training.device if isinstance(spec, TrainSpec) else "auto"
        at = replace(at, device=device.choose(wanted))
        return (yield from _train(spec, at) if isinstance(spec, TrainSpec) else _prune(spec, at))


def warm_up() -> bool:
    """One step of a training with all defaults: PyTorch and the GPU's libraries load much of themselves only then,
    seconds that no job should wait for. Kernels of our own are tried first; returns what `try_kernels` does."""
    memory.keep_freed()
    were_tried = try_kernels()
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
    memory.give_back()
    return were_tried


def try_kernels() -> bool:
    """Where there is a GPU, see whether kernels of our own are right there. False when it had no memory for that: they
    are not used until they are tried again."""
    chosen = device.choose("auto")
    if chosen.type != "cuda":
        return True
    with reproducible(chosen):
        were_tried = trial.try_kernels(chosen)
    memory.give_back()
    return were_tried


def _train(spec: TrainSpec, at: Workplace) -> Steps[NetworkResult]:
    dataset = _load_data(spec.dataset, at)
    if spec.initial is None:
        begun = _Network(spec.model, fresh(spec.model, spec.training.seed, dataset.shape.ends), {})
    else:
        begun = _read_network(spec.initial, at.inputs, dataset.shape.ends, spec.model)
    return (yield from _carry_out(spec, begun, dataset, at))


def _prune(spec: PruneSpec, at: Workplace) -> Steps[NetworkResult]:
    if spec.dataset is None:
        raise ValueError("the prune spec is not resolved: its dataset is still to be taken from the source")
    dataset = _load_data(spec.dataset, at)
    begun = _read_network(spec.source, at.inputs, dataset.shape.ends)
    # What an earlier pruning left at zero stays there. The dense network of a job has lost nothing yet.
    pruned = spec.source.artifact == "model.safetensors"
    mask = Mask.of_nonzero(dict(begun.network.named_parameters())) if pruned else None
    return (yield from _carry_out(spec, begun, dataset, at, mask))


class _Network(NamedTuple):
    """What a run begins with, or learns from."""

    model: ModelSpec
    network: Cnn
    read: Mapping[str, str]
    """The sha256 of the file that it was read from, for the receipt; nothing of new weights."""


def _carry_out(
    spec: TrainSpec | PruneSpec, begun: _Network, dataset: Dataset, at: Workplace, mask: Mask | None = None
) -> Steps[NetworkResult]:
    """Train, prune and measure as the spec wants, then publish."""
    assert spec.dataset is not None
    model, shape = begun.model, dataset.shape
    teachers = _teachers(spec, shape.ends, at)
    stages = plan(spec, model.shapes(shape.ends), mask)
    _refuse_precision(spec, at.device)
    copied = dataset.train_images.nbytes if spec.dataset.validation_images else 0
    if at.device.type == "cuda":  # all images are to lie there, as floats
        copied = FLOAT * dataset.size
    widths = [each.model for each in teachers.values()]
    refuse_what_does_not_fit(model, stages, at.device, at.out, shape, copied, widths)
    resumed = at.recovery.latest(dataset.sha256)
    resumes = at.recovery.resumes(resumed)
    if resumed is not None:
        at.observer.record("resumed", {"step": resumes[-1].step})
        torch.set_num_threads(resumed.origin.threads)  # with more or fewer, sums come out in another order
    origin = Origin(dataset.sha256, resumes, device.name_of(at.device), torch.get_num_threads(), str(torch.__version__))
    networks = (begun, *teachers.values())
    for each in networks:
        device.place(each.network, at.device)
    taught_by = {ref: each.network for ref, each in teachers.items()}
    validation_images = spec.dataset.validation_images
    candidate = Candidate(begun.network, dataset, validation_images, at.device, taught_by, at.placed)
    progress = resumed.progress if resumed is not None else Progress(mask=mask)
    beside = memory_beside(model, stages, at.device, shape)
    yield from execute(stages, candidate, progress, at.observer, origin, resumed, beside)
    read = {name: sha256 for each in networks for name, sha256 in each.read.items()}
    if spec.dataset.id is not None:
        folder = at.inputs[spec.dataset.id]
        read |= {f"{spec.dataset.id}/{name}": file_sha256(folder / name) for name in (DATASET, MANIFEST)}
    return (yield from _publish(spec, model, candidate, progress, read, resumes, at))


def _refuse_precision(spec: TrainSpec | PruneSpec, on: torch.device) -> None:
    courses = (spec.training if isinstance(spec, TrainSpec) else None, spec.fine_tuning)
    for course in courses:
        if course is not None:
            device.refuse_what_it_lacks(course.precision, on)


def _teachers(spec: TrainSpec | PruneSpec, ends: Ends, at: Workplace) -> Mapping[CheckpointRef, _Network]:
    """Of all courses; they look at images and are not trained."""
    refs = dict.fromkeys(each.teacher for each in taught(spec))
    teachers = {ref: _read_network(ref, at.inputs, ends) for ref in refs}
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
    at: Workplace,
) -> Steps[NetworkResult]:
    assert spec.dataset is not None
    own = spec.dataset.id
    told = _sensitivity(spec.sensitivity, candidate, progress, at) if spec.sensitivity is not None else None
    at.observer.enter(Phase.REPORTING)
    after, accuracies, predictions = state_of(candidate.network), progress.accuracies, progress.predictions
    last = next(point for point in (AFTER, PRUNED, BEFORE) if point in accuracies)
    outcome = Outcome(
        model=model,
        shape=candidate.dataset.shape,
        dataset_name=None if own is None else name_of(own, at.inputs[own]),
        before=progress.dense or after,
        after=after,
        mask=progress.mask,
        thresholds=progress.thresholds,
        accuracy_before=accuracies[BEFORE],
        accuracy_pruned=accuracies.get(PRUNED),
        accuracy_after=accuracies[last],
        labels=candidate.dataset.test_labels,
        predictions_before=predictions[BEFORE],
        probes=scaled(candidate.dataset.test_images[:PROBES]),
        predictions_after=predictions[last],
        sensitivity=told,
    )
    making = Making(spec, outcome, progress.history, at.latency_seconds, at.observer)
    made: Made | None = yield making
    report, files = made or making.made()
    if spec.pruning is not None:
        at.observer.record("pruned", report.total.model_dump(mode="json", include=_PRUNED_FACTS))
    course = spec.training if isinstance(spec, TrainSpec) else spec.fine_tuning
    dataset = Content(candidate.dataset.name, candidate.dataset.sha256)
    together = progress.together
    published = receipt(spec, at, read, dataset, course=course, resumes=resumes, together=together)
    publish(at.out, files, published)
    return network_result(report, candidate.dataset, at)


def _sensitivity(spec: SensitivitySpec, candidate: Candidate, progress: Progress, at: Workplace) -> Sensitivity:
    """Of the network as it was when its pruning began."""
    at.observer.enter(Phase.EVALUATING)
    network, examples = copy.deepcopy(candidate.network), candidate.examples()
    if progress.dense is not None:
        network.load_state_dict(progress.dense)
    validation = len(examples.validation_labels) > 0
    images, labels = (examples.validation_images, examples.validation_labels) if validation else candidate.test()
    return sensitivity(network, spec, images, labels, validation=validation, observer=at.observer)


_PRUNED_FACTS = {"nonzero_before", "nonzero_after", "sparsity", "emptied"}


def _compare(spec: CompareSpec, at: Workplace) -> CompareResult:
    at.observer.enter(Phase.REPORTING)
    comparison, read = read_jobs(spec.jobs, at.inputs)
    publish(at.out, comparison_files(comparison), receipt(spec, at, read))
    return CompareResult(kind="compare", jobs=spec.jobs)


def _sweep(spec: SweepSpec, members: Sequence[MemberJob], at: Workplace) -> SweepResult:
    at.observer.enter(Phase.REPORTING)
    frontier, read = read_frontier(spec, members, at.inputs, at.observer)
    publish(at.out, frontier_files(frontier, spec.display_name), receipt(spec, at, read))
    return result_of(frontier)


def _import(spec: ImportSpec, upload: Path, at: Workplace) -> ImportResult:
    at.observer.enter(Phase.IMPORTING)
    refuse_import_that_does_not_fit(spec.size, at.out)
    (model, ends), state = read_upload(spec, upload, at.out, at.observer)
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
    at.observer.record("imported", result.model_dump(mode="json", include=_IMPORTED_FACTS))
    files = {"model.safetensors": checkpoint.to_safetensors(state), "model.pt": checkpoint.to_torch(state)}
    publish(at.out, files, receipt(spec, at, {"upload": file_sha256(upload)}))
    return result


_IMPORTED_FACTS = {"channels", "hidden", "parameters", "nonzero"}


def _receive(spec: DatasetImportSpec, upload: Path, at: Workplace) -> DatasetResult:
    at.observer.enter(Phase.IMPORTING)
    kept = at.out / DATASET
    read_apart(spec, upload, kept, at.observer.check)
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
    at.observer.record("imported", result.model_dump(mode="json", include={"format", "facts", "dataset_sha256"}))
    content = Content(None, result.dataset_sha256)
    publish(at.out, {}, receipt(spec, at, {"upload": file_sha256(upload)}, content), written=[DATASET])
    return result


def _load_data(dataset: DatasetSpec, at: Workplace) -> Dataset:
    at.observer.enter(Phase.PREPARING_DATA)
    if dataset.name is not None:
        return at.datasets.load(dataset.name)
    assert dataset.id is not None  # one of the two
    path = at.inputs[dataset.id] / DATASET
    refuse_dataset_that_does_not_fit(path, at.device)
    return at.datasets.read(dataset.id, path)


def _read_network(ref: CheckpointRef, inputs: Inputs, ends: Ends, model: ModelSpec | None = None) -> _Network:
    """The network of a checkpoint, with those ends and of the widths `model`; None takes the checkpoint's own."""
    path = inputs[ref.job_id] / ref.artifact
    if not path.is_file():
        raise InvalidCheckpoint(f"{ref.artifact} of {ref.job_id} is missing: run that job again")
    (found, _), state = checkpoint.load(path, model, ends)
    network = Cnn(found.channels, found.hidden, ends)
    network.load_state_dict(state)
    return _Network(found, network, {f"{ref.job_id}/{ref.artifact}": file_sha256(path)})
