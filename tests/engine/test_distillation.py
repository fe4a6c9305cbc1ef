"""Learning from a teacher's outputs, from one step to whole runs."""

from __future__ import annotations

import copy
import hashlib
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from app.contract.datasets import DatasetName
from app.contract.reference import CheckpointRef
from app.contract.spec import ModelSpec
from app.contract.training import Distillation, FineTuningSpec, Sgd
from tests.engine.conftest import JOBS, Listener, Run, run
from tests.engine.few import ALL, BATCH, FEW
from tests.engine.measured import measured
from tests.specs import Document, prune_spec, train_spec
from worker.engine.augment import draw_shifts, shifted
from worker.engine.evaluate import evaluate
from worker.engine.model import Cnn, fresh
from worker.engine.objective import objective
from worker.engine.plan import Course
from worker.engine.progress import Progress
from worker.engine.seeding import generator
from worker.engine.train import Examples, train

DIGITS = ALL.load(DatasetName.DIGITS)
IMAGES, LABELS = DIGITS.train_images[:250], DIGITS.train_labels[:250]
HALF = 720
MODEL = ModelSpec(channels=(4, 4, 8), hidden=16)
REF = CheckpointRef(job_id=JOBS["plain"])


def _course(distillation: Distillation | None = None, **settings: Any) -> Course:
    return Course(FineTuningSpec(distillation=distillation, **settings))


def _distillation(**settings: float) -> Distillation:
    return Distillation(teacher=REF, **settings)


def _train(network: nn.Module, course: Course, teacher: nn.Module | None, labels: Tensor = LABELS) -> Progress:
    """On as many of the images as there are labels."""
    images, progress = DIGITS.train_images[: len(labels)], Progress()
    examples = Examples(images, labels, images[:0], labels[:0])
    train(network, examples, course, progress, Listener(), teacher=teacher)
    return progress


def _accuracy(network: nn.Module) -> float:
    return evaluate(network, DIGITS.test_images, DIGITS.test_labels, Listener()).accuracy.accuracy


def _by_the_paper(settings: FineTuningSpec, logits: Tensor, labels: Tensor, taught: Tensor) -> Tensor:
    """Written out: sums of −target·log(softmax)."""
    distillation = settings.distillation
    assert distillation is not None
    smoothing, temperature, weight = settings.label_smoothing, distillation.temperature, distillation.weight
    target = functional.one_hot(labels, 10) * (1 - smoothing) + smoothing / 10
    of_labels = -(target * logits.log_softmax(1)).sum(1).mean()
    of_teacher = -((taught / temperature).softmax(1) * (logits / temperature).log_softmax(1)).sum(1).mean()
    return (1 - weight) * of_labels + weight * temperature**2 * of_teacher


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("how", [{}, {"temperature": 1, "weight": 0.3}, {"weight": 1}], ids=str)
def test_the_loss_and_its_gradient_are_the_papers(smoothing: float, how: dict[str, float]) -> None:
    source = torch.Generator().manual_seed(0)
    taught, start = (5 * torch.randn(30, 10, generator=source) for _ in range(2))
    settings = FineTuningSpec(label_smoothing=smoothing, distillation=_distillation(**how))
    losses, gradients = [], []
    for loss in (objective, _by_the_paper):
        logits = start.clone().requires_grad_()
        losses.append(loss(settings, logits, LABELS[:30], taught))
        gradients.append(torch.autograd.grad(losses[-1], logits)[0])

    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-7)


def test_a_step_of_training_has_the_loss_of_what_both_networks_make_of_the_same_shifted_images() -> None:
    teacher = _teacher(epochs=1, learning_rate=0.005)
    course = _course(_distillation(), epochs=1, batch_size=250, random_shift=2)

    (epoch,) = _train(fresh(MODEL, 1), course, teacher).history

    order = torch.randperm(len(LABELS), generator=generator(0, "shuffle"))
    shifts = draw_shifts(len(LABELS), 2, generator(0, "shift/0"))
    images = shifted(IMAGES[order], shifts[order], 2)
    with torch.no_grad():
        wanted = _by_the_paper(course.settings, fresh(MODEL, 1).train()(images), LABELS[order], teacher(images))
    assert epoch.loss == pytest.approx(wanted.item(), rel=1e-4)


def test_who_is_like_the_teacher_has_nothing_to_learn() -> None:
    student = fresh(MODEL, 0)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # running statistics are this batch's then: both networks compute the same
    student.train()(IMAGES)
    moved = []
    for teacher in (copy.deepcopy(student).eval(), fresh(MODEL, 1).eval()):
        network = copy.deepcopy(student)
        step = {"epochs": 1, "batch_size": 250, "learning_rate": 1.0, "optimizer": Sgd(name="sgd", momentum=0)}
        _train(network, _course(_distillation(weight=1), **step), teacher)
        pairs = zip(network.parameters(), student.parameters(), strict=True)
        moved.append(max(float((after - before).detach().abs().max()) for after, before in pairs))

    assert moved[0] < 1e-4 < 100 * moved[0] < moved[1]


def _teacher(**settings: Any) -> Cnn:
    network = fresh(MODEL, 0)
    _train(network, _course(**settings), None, DIGITS.train_labels[:HALF])
    return network.eval().requires_grad_(False)


def test_with_all_weight_on_the_teacher_wrong_labels_do_no_harm() -> None:
    quick = {"epochs": 3, "learning_rate": 0.01, "batch_size": 25}
    teacher = _teacher(**quick)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    shuffled = DIGITS.train_labels[torch.randperm(HALF, generator=generator(0, "wrong"))]
    found = []
    for distillation in (_distillation(weight=1), None):
        student = fresh(ModelSpec(channels=(3, 3, 6), hidden=10), 1)
        _train(student, _course(distillation, **quick), teacher, shuffled)
        found.append(_accuracy(student))

    assert found[0] > 0.9 * _accuracy(teacher) > 0.8
    assert found[1] < 0.4
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not teacher.training


def _taught_by(job: str, artifact: str = "model.safetensors", **more: Any) -> Document:
    return {"teacher": {"job_id": JOBS[job], "artifact": artifact}, **more}


def _sha256(run: Run, name: str) -> str:
    return hashlib.sha256((run.folder / name).read_bytes()).hexdigest()


def test_a_pruned_network_learns_from_the_dense_one_of_its_chain(plain: Run, tmp_path: Path) -> None:
    inputs = {JOBS["plain"]: plain.folder}
    schedule = {"name": "gradual", "end_epoch": 1, "every_steps": 5}
    pruning = {"method": "magnitude", "keep": 500, "schedule": schedule}
    spec = prune_spec(JOBS["plain"], dataset={"name": "digits"}, pruning=pruning)
    spec["source"] = {"job_id": JOBS["plain"]}
    tuning = {"epochs": 2, "learning_rate": 0.005, "batch_size": BATCH}
    alone = run({**spec, "fine_tuning": tuning}, tmp_path / "alone", inputs, datasets=FEW)

    taught = run(
        {**spec, "fine_tuning": {**tuning, "distillation": _taught_by("plain", "dense.safetensors")}},
        tmp_path / "taught",
        inputs,
        datasets=FEW,
    )

    names = ("model.safetensors", "dense.safetensors")
    assert taught.manifest.receipt.inputs == {f"{JOBS['plain']}/{name}": _sha256(plain, name) for name in names}
    assert alone.manifest.receipt.inputs.keys() == {f"{JOBS['plain']}/model.safetensors"}
    assert taught.report.total.nonzero_after <= 500
    assert _sha256(taught, "model.safetensors") != _sha256(alone, "model.safetensors")
    losses = [[data["loss"] for kind, data in each.heard.records if kind == "epoch"] for each in (alone, taught)]
    assert all(more > less for less, more in zip(*losses, strict=True))


def test_training_and_fine_tuning_have_teachers_of_their_own_of_any_widths(
    plain: Run, pruned_again: Run, tmp_path: Path
) -> None:
    inputs = {JOBS["plain"]: plain.folder, JOBS["l1"]: pruned_again.folder}
    first, second = _taught_by("plain"), _taught_by("l1", temperature=10, weight=1)

    def taught_by(*teachers: Document | None) -> Document:
        training, tuning = ({"epochs": 1, "distillation": each} for each in teachers)
        return train_spec(model={"channels": [3, 2, 5], "hidden": 7}, training=training, fine_tuning=tuning)

    both = run(taught_by(first, second), tmp_path / "both", inputs, datasets=FEW)
    others = [measured(taught_by(*each), tmp_path, inputs, datasets=FEW) for each in ((first, None), (second, first))]

    assert len(both.manifest.receipt.inputs) == 2
    dense = [load_file(both.folder / "dense.safetensors"), *(each.progress.dense or {} for each in others)]
    assert all(torch.equal(dense[1][name], tensor) for name, tensor in dense[0].items())
    assert not torch.equal(dense[2]["fc1.weight"], dense[0]["fc1.weight"])
    ends = [load_file(both.folder / "model.safetensors"), *(each.state for each in others)]
    assert not any(torch.equal(one["fc1.weight"], other["fc1.weight"]) for one, other in combinations(ends, 2))
