"""A training that was interrupted goes on, to the same bits as without a break."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from torch import Tensor

from app.contract.spec import parse_spec
from tests.engine.conftest import JOBS, Listener, Run
from tests.engine.few import BATCH, FEW
from tests.engine.measured import Measured, Unpublished, Watched, measured
from tests.specs import Document, train_spec
from worker.engine import pipeline
from worker.engine.errors import InvalidCheckpoint
from worker.engine.lockstep import carry_out
from worker.engine.resume import Recovery, TrainingState, load

SPEC = train_spec(
    training={"epochs": 3, "batch_size": BATCH},
    regularization={"penalty": "l1"},
    histogram={"tensors": ["fc2.weight"]},
)
STEPS = 15  # of an epoch
NO_INPUTS: Mapping[str, Path] = MappingProxyType({})


class Power(Exception):
    """The power went."""


class Keeper(Listener):
    """Keeps a checkpoint after each of some steps, and after the last of them the power goes."""

    def __init__(self, folder: Path, steps: Sequence[int]) -> None:
        super().__init__()
        self.folder, self._wanted, self.files = folder, set(steps), list[Path]()

    def checkpoint(self, state: Callable[[], TrainingState], epoch_ended: bool) -> None:
        step = self.steps[-1][0]
        if step in self._wanted:
            self._wanted.remove(step)
            path = self.folder / f"{step}.pt"
            path.write_bytes(state().to_bytes())
            self.files.insert(0, path)
            if not self._wanted:
                raise Power


def _interrupted(tmp_path: Path, *steps: int, recovery: Recovery | None = None) -> tuple[Path, ...]:
    """The checkpoints of a run whose power went, newest first."""
    keeper = Keeper(tmp_path, steps)
    with pytest.raises(Power):
        _run(tmp_path / "cut short", keeper, recovery or Recovery())
    return tuple(keeper.files)


def _run(out: Path, listener: Listener, recovery: Recovery) -> None:
    out.mkdir(exist_ok=True)
    pipeline.run(
        parse_spec(SPEC),
        datasets=FEW,
        inputs=NO_INPUTS,
        out=out,
        observer=listener,
        recovery=recovery,
    )


def _files(folder: Path) -> dict[str, str]:
    names = ("model.safetensors", "dense.safetensors", "model.pt", "packed.npz", "histogram.json", "histogram.png")
    report = json.loads((folder / "report.json").read_text()) | {"latency": None}
    return {
        **{name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names},
        "report": json.dumps(report),
    }


def _measured(
    folder: Path, recovery: Recovery, spec: Document = SPEC, inputs: Mapping[str, Path] = NO_INPUTS
) -> Watched:
    folder.mkdir()
    return measured(spec, folder, inputs, recovery=recovery, datasets=FEW)


def _same_bits(ours: Watched, theirs: Watched) -> bool:
    """Of all that is published."""

    def facts(run: Watched) -> tuple[object, ...]:
        of = run.progress
        history = [each.model_dump(exclude={"seconds"}) for each in of.history]
        return of.stage, of.steps, of.thresholds, of.accuracies, history

    def tensors(run: Watched) -> Mapping[str, Tensor]:
        of = run.progress
        parts = {"now": run.state, "dense": of.dense or {}, "mask": of.mask or {}, "predicted": of.predictions}
        return {f"{part} {name}": tensor for part, named in parts.items() for name, tensor in named.items()}

    one, other = tensors(ours), tensors(theirs)
    same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return same and facts(ours) == facts(theirs)


def _metrics(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """The same, up to what is published."""
    return _measured(tmp_path_factory.mktemp("unbroken") / "out", Recovery())


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What comes of the run when nothing happens."""
    out = tmp_path_factory.mktemp("whole") / "out"
    _run(out, Listener(), Recovery())
    return out


def _same(first: Path, second: Path) -> bool:
    return _files(first) == _files(second) and _metrics(first) == _metrics(second)


@pytest.mark.parametrize("step", [1, STEPS, 2 * STEPS - 1, 3 * STEPS])
def test_it_goes_on_from_any_step_to_the_same_bits(unbroken: Watched, tmp_path: Path, step: int) -> None:
    checkpoints = _interrupted(tmp_path, step)

    resumed = _measured(tmp_path / "resumed", Recovery(2, checkpoints))

    assert _same_bits(resumed, unbroken)
    assert [done for done, _, unit in resumed.heard.steps if unit == "steps"] == list(range(step + 1, 3 * STEPS + 1))
    assert resumed.heard.records[0] == ("resumed", {"step": step})


def test_it_goes_on_again_and_again_with_as_many_threads_as_it_began_with(whole: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    first = _interrupted(tmp_path, 10)
    second = _interrupted(tmp_path, 25, recovery=Recovery(2, first))
    torch.set_num_threads(before + 1)
    try:
        _run(tmp_path / "resumed", Listener(), Recovery(5, second))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)

    assert _same(tmp_path / "resumed", whole)
    receipt = json.loads((tmp_path / "resumed" / "manifest.json").read_text())["receipt"]
    told = {"device_name": receipt["device_name"], "torch": torch.__version__}
    resumes = [{"attempt": attempt, "step": step, **told} for attempt, step in ((2, 10), (5, 25))]
    assert (receipt["attempt"], receipt["resumes"]) == (5, resumes)
    assert receipt["threads"] == before


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _replaced(path: Path) -> None:
    torch.save({"version": 1, "network": {}}, path)


@pytest.mark.parametrize("damage", [_truncated, _emptied, _replaced, Path.unlink])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_it(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    checkpoints = _interrupted(tmp_path, 1, 2)
    data = load(checkpoints[0]).origin.dataset_sha256

    damage(checkpoints[0])
    found = Recovery(2, checkpoints).latest(data)
    assert found is not None
    assert found.step == 1

    damage(checkpoints[1])
    assert Recovery(2, checkpoints).latest(data) is None


def test_with_no_checkpoint_left_it_starts_over(unbroken: Watched, tmp_path: Path) -> None:
    checkpoints = _interrupted(tmp_path, 1)
    _truncated(checkpoints[0])
    resumed = _measured(tmp_path / "resumed", Recovery(2, checkpoints))
    assert _same_bits(resumed, unbroken)
    assert resumed.heard.steps[0][0] == 1


def test_a_checkpoint_of_other_data_is_not_gone_on_from(tmp_path: Path) -> None:
    checkpoints = _interrupted(tmp_path, 5)
    assert Recovery(2, checkpoints).latest("0" * 64) is None
    assert Recovery(2, checkpoints).latest(load(checkpoints[0]).origin.dataset_sha256) is not None


DISTILLATION: Document = {"teacher": {"job_id": JOBS["plain"]}}


def _course(epochs: int, **settings: object) -> Document:
    return {"epochs": epochs, "batch_size": BATCH, **settings}


STAGED: dict[str, Document] = {
    "fine-tuned": {
        "pruning": {"method": "taylor", "sparsity": 0.8, "recalibrate_batchnorm": True},
        "fine_tuning": _course(2, learning_rate_schedule="cosine", random_shift=1, select="best"),
    },
    "rewound": {
        "pruning": {
            "method": "magnitude",
            "sparsity": 0.8,
            "schedule": {"name": "iterative", "rounds": 2, "rewind_epoch": 1},
        },
        "fine_tuning": _course(1, optimizer={"name": "sgd"}),
    },
    "gradual": {
        "pruning": {
            "method": "magnitude",
            "sparsity": 0.8,
            "schedule": {"name": "gradual", "begin_epoch": 1, "end_epoch": 2, "every_steps": 4},
        },
        "fine_tuning": _course(1, warmup_epochs=1),
    },
    "before": {
        "pruning": {"method": "snip", "sparsity": 0.5, "schedule": {"name": "one-shot", "when": "before-training"}},
        "regularization": {"penalty": "l1-proximal"},
    },
    "taught": {
        "training": _course(2, distillation=DISTILLATION, random_shift=1),
        "pruning": {
            "method": "magnitude",
            "sparsity": 0.8,
            "schedule": {"name": "gradual", "end_epoch": 1, "every_steps": 4},
        },
        "fine_tuning": _course(1, distillation={**DISTILLATION, "weight": 1}),
    },
}
"""Schedules with more than one stage, on two epochs of training."""
STAGED_STEPS = 14  # of an epoch, since 20 images are for validation


SLOW = pytest.mark.acceptance
"""Like the others, in the order of their stages alone."""
QUICK = ["gradual"]


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=SLOW) for name in STAGED if name not in QUICK)])
def test_a_run_of_several_stages_goes_on_from_each_of_its_checkpoints(plain: Run, tmp_path: Path, name: str) -> None:
    dataset = {"name": "digits", "validation_images": 20}
    spec = train_spec(**{"dataset": dataset, "training": _course(2), **STAGED[name]})
    inputs = {JOBS["plain"]: plain.folder}
    keeper = _EveryFew(tmp_path)
    whole = Watched(spec, tmp_path, keeper, inputs, datasets=FEW)
    carry_out([whole])
    assert isinstance(whole.failure, Measured)
    epochs = len(whole.progress.history)
    assert len(keeper.files) == epochs * 2

    for number, checkpoint in enumerate(keeper.files):
        resumed = _measured(tmp_path / str(number), Recovery(2, (checkpoint,)), spec, inputs)
        assert _same_bits(resumed, whole), number
        assert ("resumed", {"step": int(checkpoint.stem)}) in resumed.heard.records
        trained = sum(unit == "steps" for _, _, unit in resumed.heard.steps)
        assert trained == STAGED_STEPS * epochs - int(checkpoint.stem)


class _EveryFew(Unpublished):
    """Keeps a checkpoint in the midst of each epoch, and at its end."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.files, self._step = folder, list[Path](), 0

    def checkpoint(self, state: Callable[[], TrainingState], epoch_ended: bool) -> None:
        self._step += 1
        if epoch_ended or self._step % STAGED_STEPS == 10:
            path = self.folder / f"{self._step}.pt"
            path.write_bytes(state().to_bytes())
            self.files.append(path)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"version": 1, "network": print}, path)
    with pytest.raises(InvalidCheckpoint, match="more than a state of a training"):
        load(path)
