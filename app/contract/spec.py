"""Job specs: what a client asks for. Frozen, closed (unknown fields are refused), every number bounded and finite."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import Field, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from app.contract.closed import NO_REPEATS, UNIQUE, Closed, refusal
from app.contract.datasets import DATASETS, MAX_IMAGES, DatasetFacts, DatasetName
from app.contract.grid import MAX_MEMBERS, Grid
from app.contract.job import JobSpec, Limits
from app.contract.network import (
    MNIST_ENDS,
    MNIST_SHAPE,
    PARAMETER_NAMES,
    DataShape,
    Ends,
    macs_per_image,
    parameter_count,
    parameter_shapes,
)
from app.contract.patterns import MOST_COMPARED
from app.contract.pruning import (
    WEIGHT_MATRICES,
    Amount,
    ByGradient,
    ChannelPruning,
    Gradual,
    Iterative,
    OneShot,
    Pruning,
    TensorName,
    ThresholdPruning,
    misfit,
)
from app.contract.reference import CheckpointRef, JobId
from app.contract.training import FineTuningSpec, Regularization, TrainingSpec
from app.contract.uploads import DatasetImportSpec, ImportSpec

SPEC_VERSION = 1

MAX_MACS = 10**16
"""Most multiply-accumulates that one job may ask for: three thousand times the default run on MNIST."""

MAX_SWEEP_MACS = 10**17
"""Of all members of a sweep."""

MAX_EPOCHS = 5_000
"""Of all courses of training. Each has a line in the metrics, and each checkpoint has them all."""

Channels = Annotated[int, Field(ge=1, le=512)]


class DatasetSpec(Closed):
    """A data set that the service has, by `name`, or one that was uploaded, by `id`: one of the two."""

    name: Annotated[DatasetName | None, Field(strict=False)] = None
    id: Annotated[JobId | None, Field(description="Of `POST /v1/datasets`; it must be ready.")] = None
    validation_images: Annotated[
        int,
        Field(
            ge=0,
            lt=MAX_IMAGES,
            description="So many training images are not trained on but measured after each epoch; always the same "
            "ones of a data set, whatever the seed.",
        ),
    ] = 0

    @property
    def facts(self) -> DatasetFacts | None:
        """None of an uploaded one: its receipt has them."""
        return None if self.name is None else DATASETS[self.name]

    @property
    def called(self) -> str:
        return str(self.name or self.id)

    @model_validator(mode="after")
    def _is_one(self) -> DatasetSpec:
        if self.name is None and self.id is None:
            raise refusal("/name", "missing", f"name one of {', '.join(DATASETS)}, or give the id of an uploaded one")
        if self.name is not None and self.id is not None:
            raise refusal("/id", "misfit", "a name and an id are two data sets: leave one of them out")
        if self.facts is not None and (reason := _nothing_to_train_on(self, self.facts)):
            raise ValueError(reason)
        return self


def _nothing_to_train_on(dataset: DatasetSpec, facts: DatasetFacts) -> str | None:
    if dataset.validation_images < facts.train_images:
        return None
    return (
        f"validation_images is {dataset.validation_images}, and {dataset.called} has {facts.train_images} training "
        "images: take fewer"
    )


class ModelSpec(Closed):
    architecture: Literal["cnn"] = "cnn"
    channels: Annotated[tuple[Channels, Channels, Channels], Field(description="Widths of the three convolutions.")] = (
        16,
        16,
        32,
    )
    hidden: Annotated[int, Field(ge=1, le=4096, description="Width of the hidden linear layer.")] = 300

    def shapes(self, ends: Ends = MNIST_ENDS) -> dict[str, tuple[int, ...]]:
        return parameter_shapes(self.channels, self.hidden, ends)

    def parameters(self, ends: Ends = MNIST_ENDS) -> int:
        return parameter_count(self.channels, self.hidden, ends)

    def macs(self, shape: DataShape = MNIST_SHAPE) -> int:
        """Of one image."""
        return macs_per_image(self.channels, self.hidden, shape)


class HistogramSpec(Closed):
    """Which tensors' weight distributions are counted and drawn, and with how many evenly spaced centres."""

    tensors: Annotated[
        tuple[TensorName, ...], Field(max_length=len(PARAMETER_NAMES), json_schema_extra=UNIQUE), NO_REPEATS
    ] = (
        "layer2.0.weight",
        "fc1.weight",
        "fc2.weight",
    )
    bins: Annotated[int, Field(ge=2, le=4096)] = 256


Share = Annotated[float, Field(ge=0, lt=1)]


class SensitivitySpec(Closed):
    """Accuracy at each of these sparsities of each weight tensor alone, on the validation images if there are any."""

    sparsities: Annotated[
        tuple[Share, ...], Field(min_length=1, max_length=32, json_schema_extra=UNIQUE), NO_REPEATS
    ] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


Measured: TypeAlias = Annotated[
    SensitivitySpec | None,
    Field(description="How much each layer minds being pruned, by an evaluation for each point; null leaves it out."),
]
FineTuning: TypeAlias = Annotated[
    FineTuningSpec | None,
    Field(description="Training of what the pruning left, without a penalty. The mask holds throughout."),
]


class TrainSpec(JobSpec):
    """Train the network, optionally with a penalty, and optionally prune it, in one of three schedules."""

    kind: Literal["train"]
    dataset: DatasetSpec
    model: ModelSpec = ModelSpec()
    initial: Annotated[
        CheckpointRef | None, Field(description="Continue from this checkpoint; null starts from new weights.")
    ] = None
    training: TrainingSpec = TrainingSpec()
    regularization: Regularization | None = None
    pruning: Pruning | None = None
    fine_tuning: FineTuning = None
    histogram: HistogramSpec = HistogramSpec()
    sensitivity: Measured = None

    @property
    def epochs(self) -> int:
        """Of all courses of training."""
        return self.training.epochs + _tuning_epochs(self)

    @property
    def widths_are_known(self) -> bool:
        """They are the checkpoint's where the spec continues from one and does not repeat them."""
        return self.initial is None or "model" in self.model_fields_set

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSpec:
        _refuse_too_many_epochs(self)
        if self.widths_are_known and self.dataset.facts is not None:
            refuse_misfit(self, self.model, self.dataset.facts)
        _refuse_unselectable(self.training, self.dataset, "training")
        _refuse_unselectable(self.fine_tuning, self.dataset, "fine_tuning")
        if self.pruning is None:
            if self.fine_tuning is not None:
                raise _misfit("/fine_tuning", "fine_tuning trains what a pruning has left: give a pruning too")
            return self
        schedule = self.pruning.schedule
        if isinstance(schedule, OneShot) and schedule.when == "before-training" and self.fine_tuning is not None:
            raise _misfit(
                "/fine_tuning",
                "with a pruning before the training, the training itself tunes what is left: set fine_tuning to null",
            )
        if isinstance(schedule, Iterative):
            _refuse_untuned(self.fine_tuning)
            if (schedule.rewind_epoch or 0) > self.training.epochs:
                raise _misfit(
                    "/pruning/schedule/rewind_epoch",
                    f"pruning.schedule.rewind_epoch is {schedule.rewind_epoch}, and training.epochs is "
                    f"{self.training.epochs}: rewind to an epoch of the training",
                )
        if isinstance(schedule, Gradual):
            _refuse_unended(schedule, self.training, "training")
        return self


class PruneSpec(JobSpec):
    """Prune a checkpoint of an earlier job, and optionally fine-tune what is left."""

    kind: Literal["prune"]
    source: CheckpointRef
    pruning: Pruning
    fine_tuning: FineTuning = None
    dataset: Annotated[DatasetSpec | None, Field(description="null takes the source's data set.")] = None
    histogram: HistogramSpec = HistogramSpec()
    sensitivity: Measured = None

    @property
    def epochs(self) -> int:
        """Of all courses of fine-tuning."""
        return _tuning_epochs(self)

    @model_validator(mode="after")
    def _fits_together(self) -> PruneSpec:
        schedule = self.pruning.schedule
        _refuse_too_many_epochs(self)
        if self.dataset is not None:
            _refuse_unselectable(self.fine_tuning, self.dataset, "fine_tuning")
        if isinstance(schedule, OneShot) and schedule.when == "before-training":
            raise _misfit(
                "/pruning/schedule/when",
                "a prune job has no training to prune before: set pruning.schedule.when to after-training",
            )
        if isinstance(schedule, Iterative):
            _refuse_untuned(self.fine_tuning)
            if schedule.rewind_epoch is not None:
                raise _misfit(
                    "/pruning/schedule/rewind_epoch",
                    "a prune job has no training to rewind to: set pruning.schedule.rewind_epoch to null",
                )
        if isinstance(schedule, Gradual):
            if self.fine_tuning is None:
                raise _misfit(
                    "/fine_tuning",
                    "in a prune job, gradual pruning happens within the fine-tuning: give a fine_tuning",
                )
            _refuse_unended(schedule, self.fine_tuning, "fine_tuning")
        return self


def _misfit(pointer: str, reason: str) -> PydanticCustomError:
    return refusal(pointer, "misfit", reason)


class Taught(NamedTuple):
    """A course of training that has a teacher."""

    pointer: str
    """Of the field that names the teacher."""
    teacher: CheckpointRef
    epochs: int
    """Of all its rounds."""


def taught(spec: TrainSpec | PruneSpec) -> tuple[Taught, ...]:
    """In the order in which they run."""
    courses: list[tuple[str, FineTuningSpec | None, int]] = [("fine_tuning", spec.fine_tuning, _tuning_epochs(spec))]
    if isinstance(spec, TrainSpec):
        courses.insert(0, ("training", spec.training, spec.training.epochs))
    return tuple(
        Taught(f"/{name}/distillation/teacher", course.distillation.teacher, epochs)
        for name, course, epochs in courses
        if course is not None and course.distillation is not None
    )


def checkpoints(spec: TrainSpec | PruneSpec) -> tuple[CheckpointRef, ...]:
    """All that a run begins with or learns from, each once."""
    begun = spec.initial if isinstance(spec, TrainSpec) else spec.source
    named = [each.teacher for each in taught(spec)]
    return tuple(dict.fromkeys(named if begun is None else [begun, *named]))


Teachers: TypeAlias = Mapping[CheckpointRef, ModelSpec]
"""The widths of each."""
UNTAUGHT: Teachers = MappingProxyType({})


def refuse_misfit(
    spec: TrainSpec | PruneSpec, model: ModelSpec, facts: DatasetFacts, teachers: Teachers = UNTAUGHT
) -> None:
    """What a spec asks of a network of these widths on the data set that these are the facts of, and of its teachers,
    as far as they are known. Raises PydanticCustomError with a `pointer` in its context."""
    if spec.dataset is not None and (reason := _nothing_to_train_on(spec.dataset, facts)):
        raise _misfit("/dataset/validation_images", reason)
    if spec.pruning is not None and (found := misfit(spec.pruning, model.shapes(facts.ends))):
        raise _misfit(f"/pruning{found.pointer}", found.reason)
    _refuse_too_much_work(
        "",
        all_macs(spec, model, facts),
        "take fewer epochs, smaller widths, or fewer images for scores and points for sensitivity",
    )
    if teachers:
        dearest = max(taught(spec), key=lambda each: _teaching_macs(spec, each, facts, teachers))
        hint = "take fewer epochs or a smaller teacher"
        _refuse_too_much_work(dearest.pointer, all_macs(spec, model, facts, teachers), hint)


def _refuse_too_much_work(pointer: str, macs: int, hint: str) -> None:
    if macs > MAX_MACS:
        said = f"the job asks for {macs:.2e} multiply-accumulates, more than the {MAX_MACS:.0e} that one may use"
        raise refusal(pointer, "too_much_work", f"{said}: {hint}")


def all_macs(spec: TrainSpec | PruneSpec, model: ModelSpec, facts: DatasetFacts, teachers: Teachers = UNTAUGHT) -> int:
    """Multiply-accumulates of all training, validation, scores and sensitivity, on a network of these widths, and of
    those teachers that are known.

    A backward pass costs about twice a forward pass.
    """
    training, validation = _split(spec, facts)
    images = spec.epochs * (3 * training + validation) + 3 * _scored_images(spec, facts) + _measured_images(spec, facts)
    taught_macs = sum(_teaching_macs(spec, each, facts, teachers) for each in taught(spec))
    return model.macs(facts.shape) * images + taught_macs


def _split(spec: TrainSpec | PruneSpec, facts: DatasetFacts) -> tuple[int, int]:
    """Images to train on, and to validate with."""
    assert spec.dataset is not None  # resolved
    return facts.train_images - spec.dataset.validation_images, spec.dataset.validation_images


def _teaching_macs(spec: TrainSpec | PruneSpec, course: Taught, facts: DatasetFacts, teachers: Teachers) -> int:
    """A teacher looks at every image that the course trains on, and is not trained itself."""
    widths = teachers.get(course.teacher)
    return 0 if widths is None else widths.macs(facts.shape) * course.epochs * _split(spec, facts)[0]


def _scored_images(spec: TrainSpec | PruneSpec, facts: DatasetFacts) -> int:
    """Of all backward passes for scores."""
    pruning = spec.pruning
    if not isinstance(pruning, ByGradient):
        return 0
    schedule, times, (training, _) = pruning.schedule, 1, _split(spec, facts)
    if isinstance(schedule, Iterative):
        times = schedule.rounds
    course = spec.training if isinstance(spec, TrainSpec) else spec.fine_tuning
    if isinstance(schedule, Gradual) and course is not None:
        steps = math.ceil(training / course.batch_size) * (schedule.end_epoch - schedule.begin_epoch)
        times = math.ceil(steps / schedule.every_steps)
    return times * min(pruning.images, training)


def _measured_images(spec: TrainSpec | PruneSpec, facts: DatasetFacts) -> int:
    """Of all evaluations for the sensitivity."""
    if spec.sensitivity is None:
        return 0
    images = _split(spec, facts)[1] or facts.test_images
    return images * (1 + len(WEIGHT_MATRICES) * len(spec.sensitivity.sparsities))


def _tuning_epochs(spec: TrainSpec | PruneSpec) -> int:
    if spec.fine_tuning is None or spec.pruning is None:
        return 0
    schedule = spec.pruning.schedule
    return spec.fine_tuning.epochs * (schedule.rounds if isinstance(schedule, Iterative) else 1)


def _refuse_too_many_epochs(spec: TrainSpec | PruneSpec) -> None:
    if spec.epochs > MAX_EPOCHS:
        raise refusal(
            "",
            "too_much_work",
            f"all courses of training together have {spec.epochs} epochs, more than the {MAX_EPOCHS} that one job may "
            "have: take fewer epochs or rounds",
        )


def _refuse_unselectable(course: FineTuningSpec | None, dataset: DatasetSpec, name: str) -> None:
    if course is not None and course.select == "best" and not dataset.validation_images:
        raise _misfit(
            f"/{name}/select",
            f"{name}.select is best, and there are no images to choose by: set dataset.validation_images",
        )


def _refuse_untuned(course: FineTuningSpec | None) -> None:
    if course is None:
        raise _misfit("/fine_tuning", "iterative pruning fine-tunes in every round: give a fine_tuning")


def _refuse_unended(schedule: Gradual, course: FineTuningSpec, name: str) -> None:
    if schedule.end_epoch > course.epochs:
        raise _misfit(
            "/pruning/schedule/end_epoch",
            f"pruning.schedule.end_epoch is {schedule.end_epoch}, and {name}.epochs is {course.epochs}: "
            "end the pruning within it",
        )


class CompareSpec(JobSpec):
    """Put finished jobs side by side: their reports and their weight distributions."""

    kind: Literal["compare"]
    jobs: Annotated[
        tuple[JobId, ...], Field(min_length=2, max_length=MOST_COMPARED, json_schema_extra=UNIQUE), NO_REPEATS
    ]


class SweepLimits(Limits):
    """What becomes of the members is put together in seconds; each of them has the base's limits."""

    max_runtime_seconds: Annotated[int, Field(ge=1, le=604_800)] = 900
    max_members_seconds: Annotated[
        int,
        Field(
            ge=1,
            le=2_592_000,
            description="How long the sweep waits for its members. Those that have not ended by then are cancelled.",
        ),
    ] = 604_800


class SweepSpec(JobSpec):
    """Train one spec at each point of a grid, each as a job of its own, and put side by side how small and how good
    the networks became."""

    kind: Literal["sweep"]
    base: Annotated[TrainSpec, Field(description="What all members have in common; labels and limits, too.")]
    grid: Grid
    limits: SweepLimits = SweepLimits()

    @model_validator(mode="after")
    def _fits_together(self) -> SweepSpec:
        size = self.grid.size
        if not self.grid.axes:
            raise refusal("/grid", "missing", "nothing varies: give one of the axes some values")
        if size > MAX_MEMBERS:
            raise refusal(
                "/grid", "too_much_work", f"the grid has {size} members, and may have {MAX_MEMBERS}: take fewer values"
            )
        _refuse_axes_of_nothing(self.base, self.grid)
        return self


def _refuse_axes_of_nothing(base: TrainSpec, grid: Grid) -> None:
    """Of what the base does not have."""
    if grid.widths and base.initial is not None:
        raise _misfit("/grid/widths", "the widths are those of the checkpoint in base.initial: leave one of them out")
    if grid.strengths and base.regularization is None:
        raise _misfit("/grid/strengths", "they are the penalty's: give base.regularization one")
    if grid.thresholds and not isinstance(base.pruning, ThresholdPruning):
        raise _misfit("/grid/thresholds", "they are of base.pruning by the method threshold: give it that one")
    if grid.sparsities and not isinstance(base.pruning, Amount | ChannelPruning):
        raise _misfit("/grid/sparsities", "they are of a method that takes an amount: give base.pruning such a one")
    if grid.keeps and not isinstance(base.pruning, Amount):
        raise _misfit("/grid/keeps", "they are of a method that keeps so many entries: give base.pruning such a one")
    if grid.keeps and grid.sparsities:
        raise _misfit("/grid/keeps", "sparsities and keeps are both the amount: leave one of them out")


Kind = Literal["train", "prune", "compare", "sweep", "import", "dataset"]
AnySpec: TypeAlias = TrainSpec | PruneSpec | CompareSpec | SweepSpec
Spec: TypeAlias = Annotated[AnySpec, Field(discriminator="kind")]
"""What a client submits as JSON."""
SPEC: TypeAdapter[AnySpec] = TypeAdapter(Spec, config={"defer_build": True})
AnyStoredSpec: TypeAlias = AnySpec | ImportSpec | DatasetImportSpec
StoredSpec: TypeAlias = Annotated[AnyStoredSpec, Field(discriminator="kind")]
"""What a job may have: also what comes of an upload."""
STORED_SPEC: TypeAdapter[AnyStoredSpec] = TypeAdapter(StoredSpec, config={"defer_build": True})


def parse_spec(document: bytes | str | Mapping[str, Any]) -> AnySpec:
    """Validate a spec from JSON text or a JSON-like mapping. Raises `pydantic.ValidationError`."""
    if not isinstance(document, bytes | str):
        document = json.dumps(document)
    return SPEC.validate_json(document)


def parse_stored(document: Mapping[str, Any]) -> AnyStoredSpec:
    """Validate a job's spec as the database has it. Raises `pydantic.ValidationError`."""
    return STORED_SPEC.validate_json(json.dumps(document))
