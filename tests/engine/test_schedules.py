"""Whole runs on a few images: every method, penalty and schedule, from the spec to the files, or to what would be
published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from app.contract.network import PARAMETER_NAMES, parameter_count
from tests.engine import conftest
from tests.engine import measured as up_to_publishing
from tests.engine.conftest import Listener, Run
from tests.engine.few import BATCH, FEW
from tests.engine.measured import Watched
from tests.specs import Document, prune_spec, train_spec

TOTAL = parameter_count((4, 4, 8), 16)
DATASET = {"name": "digits", "validation_images": 20}


def run(spec: Document, folder: Path, inputs: Mapping[str, Path] | None = None) -> Run:
    return conftest.run(spec, folder, inputs, datasets=FEW)


SOURCE, SPARSE = "job_" + "a" * 32, "job_" + "b" * 32


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained without a penalty, and pruned."""
    return run(train_spec(training=_course(2)), tmp_path_factory.mktemp("source") / "out")


def measured(spec: Document, folder: Path) -> Watched:
    return up_to_publishing.measured(spec, folder, datasets=FEW)


def _course(epochs: int, **settings: object) -> Document:
    return {"epochs": epochs, "batch_size": BATCH, **settings}


def _nonzero(state: Mapping[str, Tensor]) -> int:
    return sum(int(state[name].count_nonzero()) for name in PARAMETER_NAMES)


def _files(told: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return load_file(told.folder / "dense.safetensors"), load_file(told.folder / "model.safetensors")


def _epochs(heard: Listener) -> list[tuple[str, int | None, int, float]]:
    """Course, round, epoch and sparsity, line by line."""
    lines = [data for kind, data in heard.records if kind == "epoch"]
    return [(line["course"], line["round"], line["epoch"], round(line["sparsity"], 3)) for line in lines]  # type: ignore[misc, arg-type]


METHODS: dict[str, tuple[Document, int | None]] = {
    "threshold": ({"method": "threshold", "threshold": 0.05}, None),
    "std": ({"method": "std", "multiplier": 0.5}, None),
    "magnitude": ({"method": "magnitude", "keep": 500}, 500),
    "bn-folded": ({"method": "bn-folded", "keep": 500, "scope": "global"}, 500),
    "taylor": ({"method": "taylor", "keep": 500, "images": 300}, 500),
    "snip": ({"method": "snip", "keep": 500, "images": 300}, 500),
    "random": ({"method": "random", "keep": 500}, 500),
    "n:m": ({"method": "n:m", "tensors": ["fc1.weight", "layer3.0.weight"]}, TOTAL - 16 * 392 // 2 - 8 * 4 * 9 // 2),
    "channels": ({"method": "channels", "keep": {"channels": [2, 3, 4], "hidden": 5}}, None),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_is_pruned_by_each_method(source: Run, tmp_path: Path, name: str) -> None:
    pruning, kept = METHODS[name]
    spec = prune_spec(SOURCE, dataset={"name": "digits"}, pruning=pruning)

    told = run(spec, tmp_path / "out", {SOURCE: source.folder})

    dense, model = _files(told)
    assert told.report.method == name
    assert _nonzero(model) == told.report.total.nonzero_after < _nonzero(dense)
    if kept is not None:
        masked = sum(tensor.masked for tensor in told.report.tensors)
        assert TOTAL - masked == kept >= _nonzero(model)
    for tensor in PARAMETER_NAMES:
        survivors = model[tensor] != 0
        assert (model[tensor][survivors] == dense[tensor][survivors]).all()


def test_pruned_channels_are_gone_from_the_compact_network(source: Run, tmp_path: Path) -> None:
    pruning = METHODS["channels"][0]
    told = run(
        prune_spec(SOURCE, dataset={"name": "digits"}, pruning=pruning),
        tmp_path / "out",
        {SOURCE: source.folder},
    )

    compact = told.report.compact
    assert compact is not None
    assert (compact.channels, compact.hidden, compact.inputs) == ((2, 3, 4), 5, 4 * 49)
    assert compact.macs < 0.5 * told.report.total.macs_dense


@pytest.mark.parametrize("penalty", ["l1", "l1-proximal", "group-lasso", "l2", "elastic-net"])
def test_a_network_is_trained_with_each_penalty(source: Run, tmp_path: Path, penalty: str) -> None:
    spec = train_spec(training=_course(2), regularization={"penalty": penalty, "strength": 0.05}, pruning=None)

    mine = measured(spec, tmp_path).state

    unpenalized = load_file(source.folder / "dense.safetensors")
    assert sum(float(mine[name].abs().sum()) for name in PARAMETER_NAMES) < sum(
        float(unpenalized[name].abs().sum()) for name in PARAMETER_NAMES
    )


def test_what_is_left_is_fine_tuned_with_the_mask_on(tmp_path: Path) -> None:
    spec = train_spec(
        dataset=DATASET,
        training=_course(2),
        pruning={"method": "magnitude", "sparsity": 0.9},
        fine_tuning=_course(2, learning_rate=0.003, learning_rate_schedule="cosine"),
    )

    told = run(spec, tmp_path / "out")

    _, model = _files(told)
    report = told.report
    assert sum(tensor.masked for tensor in report.tensors) == TOTAL * 9 // 10
    assert _nonzero(model) <= TOTAL - TOTAL * 9 // 10
    assert report.accuracy_pruned is not None
    assert report.accuracy_after.accuracy > report.accuracy_pruned.accuracy
    assert report.accuracy_difference == report.accuracy_after.accuracy - report.accuracy_before.accuracy
    assert _epochs(told.heard) == [("training", None, n, 0.0) for n in (1, 2)] + [
        ("fine_tuning", None, n, 0.9) for n in (1, 2)
    ]
    assert [entry for entry in told.heard.heard if entry in ("training", "pruning", "fine_tuning", "reporting")] == [
        *("training", "pruning", "fine_tuning", "reporting")
    ]


def test_rounds_prune_the_same_share_each_and_rewind(tmp_path: Path) -> None:
    schedule = {"name": "iterative", "rounds": 3, "rewind_epoch": 0}
    spec = train_spec(
        training=_course(1),
        pruning={"method": "magnitude", "sparsity": 0.875, "scope": "global", "schedule": schedule},
        fine_tuning=_course(1, learning_rate=1e-12),
    )

    told = measured(spec, tmp_path)

    assert _epochs(told.heard)[1:] == [
        ("fine_tuning", 1, 1, 0.5),
        ("fine_tuning", 2, 1, 0.75),
        ("fine_tuning", 3, 1, 0.875),
    ]
    # So small a rate leaves the survivors where they were rewound to: the initial weights, which a training with
    # hardly any rate ends at too.
    untrained = measured(train_spec(training=_course(1, learning_rate=1e-12), pruning=None), tmp_path)
    initial, model = untrained.state, told.state
    for name in PARAMETER_NAMES:
        survivors = model[name] != 0
        assert bool(((model[name] - initial[name])[survivors].abs() < 1e-6).all())


def test_gradual_pruning_ends_at_the_amount_and_keeps_the_network_that_it_began_with(tmp_path: Path) -> None:
    schedule = {"name": "gradual", "begin_epoch": 1, "end_epoch": 3, "every_steps": 5}
    spec = train_spec(training=_course(4), pruning={"method": "magnitude", "keep": 800, "schedule": schedule})
    one_epoch = measured(train_spec(training=_course(1), pruning=None), tmp_path)

    told = run(spec, tmp_path / "out")

    sparsities = [sparsity for _, _, _, sparsity in _epochs(told.heard)]
    assert sparsities[0] == 0 < sparsities[1] < sparsities[2] == sparsities[3] == round(1 - 800 / TOTAL, 3)
    dense, model = _files(told)
    assert all(bool((dense[name] == tensor).all()) for name, tensor in one_epoch.state.items())
    assert told.report.accuracy_before.accuracy == one_epoch.after.accuracy
    assert told.report.accuracy_pruned == told.report.accuracy_after
    assert _nonzero(model) <= 800


def test_what_gradual_pruning_cost_is_told_before_further_training(tmp_path: Path) -> None:
    schedule = {"name": "gradual", "end_epoch": 1, "every_steps": 5}
    pruning = {"method": "magnitude", "sparsity": 0.95, "schedule": schedule}

    spec = train_spec(training=_course(1), pruning=pruning, fine_tuning=_course(3, learning_rate=0.005))
    told = run(spec, tmp_path / "out")

    points = [data["stage"] for kind, data in told.heard.records if kind == "evaluated"]
    assert points == ["before_pruning", "after_pruning", "after_fine_tuning"]
    assert told.report.accuracy_pruned is not None
    assert told.report.accuracy_after.correct > told.report.accuracy_pruned.correct


def test_a_pruning_before_the_training_holds_in_it(tmp_path: Path) -> None:
    schedule = {"name": "one-shot", "when": "before-training"}
    spec = train_spec(
        training=_course(2), pruning={"method": "snip", "sparsity": 0.5, "layers": ["linear"], "schedule": schedule}
    )

    told = run(spec, tmp_path / "out")

    assert [sparsity > 0.4 for _, _, _, sparsity in _epochs(told.heard)] == [True] * 2
    assert told.report.accuracy_after.accuracy > told.report.accuracy_before.accuracy
    linear = [tensor for tensor in told.report.tensors if tensor.layer_kind == "linear"]
    assert sum(tensor.masked for tensor in linear) == sum(tensor.total for tensor in linear) // 2


def test_a_checkpoint_is_fine_tuned_gradually_in_a_prune_job(source: Run, tmp_path: Path) -> None:
    schedule = {"name": "gradual", "end_epoch": 2, "every_steps": 3}
    spec = prune_spec(
        SOURCE,
        dataset={"name": "digits"},
        pruning={"method": "magnitude", "sparsity": 0.8, "schedule": schedule},
        fine_tuning=_course(3, seed=4),
    )

    told = run(spec, tmp_path / "out", {SOURCE: source.folder})

    assert [course for course, _, _, _ in _epochs(told.heard)] == ["fine_tuning"] * 3
    assert told.manifest.receipt.seed == 4
    assert (told.folder / "metrics.jsonl").read_text().count("\n") == 3
    assert told.report.accuracy_before == source.report.accuracy_before


@pytest.mark.parametrize(
    "pruning",
    [
        {"method": "n:m", "tensors": ["fc2.weight"]},
        *(
            pytest.param(pruning, marks=pytest.mark.acceptance)
            for pruning in (
                {"method": "threshold", "threshold": 0, "parameters": ["bias"]},
                {"method": "magnitude", "sparsity": 0.5},
                {
                    "method": "magnitude",
                    "sparsity": 0.95,
                    "schedule": {"name": "gradual", "end_epoch": 1, "every_steps": 5},
                },
            )
        ),
    ],
    ids=str,
)
def test_what_the_source_pruned_stays_pruned_in_fine_tuning(source: Run, tmp_path: Path, pruning: Document) -> None:
    sparse = prune_spec(SOURCE, dataset={"name": "digits"}, pruning={"method": "magnitude", "sparsity": 0.9})
    pruned = run(sparse, tmp_path / "pruned", {SOURCE: source.folder})
    again = prune_spec(SPARSE, dataset={"name": "digits"}, pruning=pruning, fine_tuning=_course(1))
    again["source"]["artifact"] = "model.safetensors"

    told = run(again, tmp_path / "out", {SPARSE: pruned.folder})

    before, after = load_file(pruned.folder / "model.safetensors"), load_file(told.folder / "model.safetensors")
    assert told.report.total.nonzero_after <= told.report.total.nonzero_before == _nonzero(before)
    for name in PARAMETER_NAMES:
        assert not after[name][before[name] == 0].any()


def test_batchnorm_is_measured_again_on_request(source: Run, tmp_path: Path) -> None:
    found = []
    for recalibrate in (False, True):
        pruning = {"method": "random", "sparsity": 0.5, "layers": ["conv"], "recalibrate_batchnorm": recalibrate}
        spec = prune_spec(SOURCE, dataset={"name": "digits"}, pruning=pruning)
        found.append(run(spec, tmp_path / str(recalibrate), {SOURCE: source.folder}))

    stale, measured = found
    dense = _files(stale)[0]
    assert bool((_files(stale)[1]["layer2.1.running_mean"] == dense["layer2.1.running_mean"]).all())
    assert not bool((_files(measured)[1]["layer2.1.running_mean"] == dense["layer2.1.running_mean"]).all())
    assert measured.report.accuracy_after.loss < stale.report.accuracy_after.loss
