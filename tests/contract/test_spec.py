"""What a spec may say: its defaults, its bounds, and that nothing is guessed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from app.contract.job import Limits
from app.contract.network import PARAMETER_NAMES
from app.contract.pruning import ThresholdPruning
from app.contract.spec import SPEC, CompareSpec, HistogramSpec, PruneSpec, TrainSpec, parse_spec, parse_stored
from app.contract.training import L1Penalty
from tests.specs import Document

JOB = "job_" + "0" * 32
OTHER = "job_" + "1" * 32
TRAIN: Document = {"kind": "train", "dataset": {"name": "digits"}}
PRUNE: Document = {"kind": "prune", "source": {"job_id": JOB}, "pruning": {"method": "threshold"}}
COMPARE: Document = {"kind": "compare", "jobs": [JOB, OTHER]}


def _with(base: Document, path: str, value: Any) -> Document:
    """A copy of a spec with one value set; `path` such as training.epochs."""
    copy: Document = json.loads(json.dumps(base))
    *parents, last = path.split(".")
    node = copy
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return copy


def _codes(document: Document) -> set[str]:
    with pytest.raises(ValidationError) as caught:
        parse_spec(document)
    return {error["type"] for error in caught.value.errors()}


def test_a_train_spec_needs_nothing_but_its_data_set() -> None:
    spec = parse_spec(TRAIN)

    assert isinstance(spec, TrainSpec)
    assert spec.model_dump(mode="json") == {
        "kind": "train",
        "display_name": None,
        "labels": {},
        "dataset": {"name": "digits", "id": None, "validation_images": 0},
        "model": {"architecture": "cnn", "channels": [16, 16, 32], "hidden": 300},
        "initial": None,
        "training": {
            "epochs": 5,
            "batch_size": 100,
            "learning_rate": 0.001,
            "learning_rate_schedule": "constant",
            "warmup_epochs": 0,
            "optimizer": {"name": "adam"},
            "label_smoothing": 0.0,
            "distillation": None,
            "random_shift": 0,
            "select": "last",
            "seed": 0,
            "precision": "float32",
            "device": "auto",
        },
        "regularization": None,
        "pruning": None,
        "fine_tuning": None,
        "histogram": {"tensors": ["layer2.0.weight", "fc1.weight", "fc2.weight"], "bins": 256},
        "sensitivity": None,
        "limits": {"max_queue_seconds": 86_400, "max_runtime_seconds": 86_400},
    }


@pytest.mark.parametrize("document", [{"kind": "train"}, {"kind": "train", "dataset": {}}])
def test_no_data_set_is_guessed(document: Document) -> None:
    assert _codes(document) == {"missing"}


def test_a_prune_spec_takes_the_sparse_checkpoint_and_the_sources_data_set() -> None:
    spec = parse_spec(PRUNE)

    assert isinstance(spec, PruneSpec)
    assert spec.source.artifact == "model.safetensors"
    assert spec.dataset is None
    assert spec.pruning == ThresholdPruning(
        method="threshold", threshold=0.01, parameters=("weight", "bias"), layers=("conv", "batchnorm", "linear")
    )
    assert spec.histogram == HistogramSpec()
    assert spec.limits == Limits()


def test_a_penalty_has_the_strength_of_the_experiment() -> None:
    assert L1Penalty(penalty="l1").strength == 0.001


@pytest.mark.parametrize("document", [TRAIN, PRUNE, COMPARE], ids=lambda spec: spec["kind"])
def test_what_was_resolved_resolves_to_itself(document: Document) -> None:
    resolved = parse_spec(document).model_dump_json()

    assert parse_spec(resolved).model_dump_json() == resolved
    assert isinstance(parse_spec(COMPARE), CompareSpec)


BOUNDS = {
    "model.hidden": (1, 4096),
    "training.epochs": (1, 1000),
    "training.batch_size": (1, 4096),
    "training.seed": (0, 2**63 - 1),
    "histogram.bins": (2, 4096),
    "limits.max_queue_seconds": (1, 604_800),
    "limits.max_runtime_seconds": (1, 604_800),
}


@pytest.mark.parametrize(("path", "low", "high"), [(path, *bounds) for path, bounds in BOUNDS.items()])
def test_whole_numbers_have_bounds_that_belong_to_them(path: str, low: int, high: int) -> None:
    for lawful in (low, high):
        assert parse_spec(_with(TRAIN, path, lawful))
    assert _codes(_with(TRAIN, path, low - 1)) == {"greater_than_equal"}
    assert _codes(_with(TRAIN, path, high + 1)) <= {"less_than_equal", "less_than"}


@pytest.mark.parametrize("path", BOUNDS)
@pytest.mark.parametrize("value", ["5", 5.5, True, None, [5]], ids=repr)
def test_a_whole_number_is_never_guessed(path: str, value: object) -> None:
    assert _codes(_with(TRAIN, path, value)) <= {"int_type", "int_from_float"}


PENALTY = _with(TRAIN, "regularization", {"penalty": "l1"})
PRUNED = _with(TRAIN, "pruning", {"method": "threshold"})


@pytest.mark.parametrize(
    ("base", "path", "lawful", "unlawful"),
    [
        (TRAIN, "training.learning_rate", [1e-300, 10], [0, -1, 10.001]),
        (PENALTY, "regularization.strength", [1e-300, 1], [0, -0.001, 1.001]),
        (PRUNED, "pruning.threshold", [0, 1000], [-1e-300, 1000.1]),
    ],
)
def test_real_numbers_have_bounds(base: Document, path: str, lawful: list[float], unlawful: list[float]) -> None:
    for value in lawful:
        assert parse_spec(_with(base, path, value))
    for value in unlawful:
        assert _codes(_with(base, path, value)) <= {
            "greater_than",
            "greater_than_equal",
            "less_than_equal",
        }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("base", "path"),
    [(TRAIN, "training.learning_rate"), (PENALTY, "regularization.strength"), (PRUNED, "pruning.threshold")],
)
def test_what_is_not_finite_is_refused(base: Document, path: str, value: float) -> None:
    assert _codes(_with(base, path, value)) == {"finite_number"}


@pytest.mark.parametrize("channels", [[16, 16], [16, 16, 32, 32], [0, 1, 1], [1, 1, 513], [1, 1, 1.5], 16, []])
def test_there_are_three_widths_from_1_to_512(channels: object) -> None:
    assert _codes(_with(TRAIN, "model.channels", channels))
    assert parse_spec(_with(TRAIN, "model.channels", [1, 512, 1]))


@pytest.mark.parametrize(
    ("base", "path", "value"),
    [
        (TRAIN, "dataset.name", "cifar10"),
        (TRAIN, "model.architecture", "resnet"),
        (TRAIN, "training.device", "tpu"),
        (PENALTY, "regularization.penalty", "l3"),
        (PRUNED, "pruning.method", "magnitude-ish"),
        (PRUNED, "pruning.layers", ["pool"]),
        (PRUNED, "pruning.layers", []),
        (PRUNED, "pruning.parameters", ["weight", "weight"]),
        (TRAIN, "histogram.tensors", ["fc3.weight"]),
        (TRAIN, "histogram.tensors", ["fc1.weight", "fc1.weight"]),
        (TRAIN, "initial", {"job_id": "job_1"}),
        (TRAIN, "initial", {"job_id": JOB, "artifact": "model.pt"}),
        (PRUNE, "source.artifact", "../model.safetensors"),
        (PRUNE, "pruning", None),
        (COMPARE, "jobs", [JOB]),
        (COMPARE, "jobs", [JOB, JOB]),
        (COMPARE, "jobs", [f"job_{number:032x}" for number in range(9)]),
        (TRAIN, "kind", "distil"),
    ],
)
def test_words_that_are_not_known_are_refused(base: Document, path: str, value: object) -> None:
    assert _codes(_with(base, path, value))


@pytest.mark.parametrize("base", [TRAIN, PRUNE, COMPARE], ids=lambda spec: spec["kind"])
def test_no_kind_takes_an_unknown_field(base: Document) -> None:
    assert _codes(_with(base, "priority", 1)) == {"extra_forbidden"}
    assert _codes(_with(base, "limits.max_minutes", 1)) == {"extra_forbidden"}


def test_every_tensor_may_be_drawn_and_none_need_be() -> None:
    assert parse_spec(_with(TRAIN, "histogram.tensors", list(PARAMETER_NAMES)))
    assert parse_spec(_with(TRAIN, "histogram.tensors", []))


@pytest.mark.parametrize("name", ["a", "x" * 128, "Ünë 🙂 漢字", "שלום\u200f!"])
def test_a_name_is_any_printable_line(name: str) -> None:
    assert parse_spec(_with(TRAIN, "display_name", name)).display_name == name


@pytest.mark.parametrize(
    "name", ["", "x" * 129, "two\nlines", "bell\x07", "sep\u2028", "nul\x00", "\u202egpj.exe", "\u2066a"]
)
def test_a_name_is_one_line_of_bounded_length(name: str) -> None:
    assert _codes(_with(TRAIN, "display_name", name))


def test_labels_are_bounded_in_number_length_and_alphabet() -> None:
    full = {f"key{number}": "v" * 128 for number in range(16)}
    assert parse_spec(_with(TRAIN, "labels", full)).labels == full
    for labels in ({**full, "one-more": ""}, {"": "v"}, {"Key": "v"}, {"k" * 64: "v"}, {"k": "v" * 129}, {"k": 1}):
        assert _codes(_with(TRAIN, "labels", labels))


def test_a_training_beyond_all_measure_is_refused_with_what_to_do() -> None:
    huge = _with(_with(TRAIN, "model", {"channels": [512, 512, 512], "hidden": 4096}), "training.epochs", 1000)
    with pytest.raises(ValidationError, match="take fewer epochs, smaller widths"):
        parse_spec(_with(huge, "dataset.name", "mnist"))


def test_a_spec_cannot_be_changed() -> None:
    spec = parse_spec(TRAIN)
    with pytest.raises(ValidationError, match="frozen"):
        spec.display_name = "other"  # type: ignore[misc]


def test_the_schema_tells_the_bounds_to_clients() -> None:
    definitions = SPEC.json_schema()["$defs"]
    training = definitions["TrainingSpec"]["properties"]
    assert (training["epochs"]["minimum"], training["epochs"]["maximum"]) == (1, 1000)
    assert definitions["TrainSpec"]["additionalProperties"] is False
    assert definitions["CompareSpec"]["properties"]["jobs"]["uniqueItems"] is True


IMPORT: Document = {"kind": "import", "format": "torch", "size": 1, "sha256": "0" * 64}


def test_an_import_is_stored_and_not_submitted() -> None:
    spec = parse_stored(IMPORT)

    assert parse_stored(spec.model_dump(mode="json")) == spec
    assert spec.limits.max_runtime_seconds < parse_spec(TRAIN).limits.max_runtime_seconds
    with pytest.raises(ValidationError, match="union_tag_invalid"):
        parse_spec(IMPORT)


@pytest.mark.parametrize("change", [{"format": "onnx"}, {"size": 0}, {"sha256": "0" * 63}, {"sha256": "G" * 64}])
def test_an_import_is_of_a_file_that_was_there(change: Document) -> None:
    with pytest.raises(ValidationError):
        parse_stored({**IMPORT, **change})
