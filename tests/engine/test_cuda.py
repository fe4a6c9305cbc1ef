"""Training on a GPU: captured steps, to the same bits. Needs the engine alone, and a GPU."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.contract.datasets import DatasetName
from app.contract.pruning import MagnitudePruning, Scored, TaylorPruning
from app.contract.spec import ModelSpec, parse_spec
from app.contract.training import FineTuningSpec, ProximalL1, TrainingSpec
from tests.engine.optimizers import OPTIMIZERS
from worker.engine import device, kernels, pipeline, resume, trial
from worker.engine.convolve import convolved
from worker.engine.data import DatasetStore
from worker.engine.errors import NonFiniteLoss
from worker.engine.model import fresh
from worker.engine.normalize import Affine, Running, normalized
from worker.engine.observer import Observer
from worker.engine.placed import Placed
from worker.engine.plan import Course
from worker.engine.pooling import MaxPool
from worker.engine.progress import Progress
from worker.engine.pruning import Mask
from worker.engine.resume import TrainingState
from worker.engine.seeding import generator, reproducible
from worker.engine.train import Examples, train

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no CUDA device here: what runs on GPUs alone is not tested"
)

MODEL = ModelSpec(channels=(2, 3, 4), hidden=8)
STEPS = 3
"""An epoch: two whole batches, and a smaller one."""

PENALTIES: list[dict[str, Any] | None] = [
    None,
    {"penalty": "l1"},
    {"penalty": "l1-proximal", "strength": 0.01, "batchnorm_scale_strength": 0.1},
    {"penalty": "group-lasso"},
    {"penalty": "l2", "strength": 0.1},
    {"penalty": "elastic-net"},
]


@pytest.fixture(scope="module")
def gpu() -> torch.device:
    return torch.device("cuda")


@pytest.fixture(scope="module")
def examples(gpu: torch.device) -> Examples:
    digits = DatasetStore(None).load(DatasetName.DIGITS)
    whole = Placed().examples(digits, 0, gpu)
    images, labels = whole.images, whole.labels
    return Examples(images[:250], labels[:250], images[250:400], labels[250:400])


@dataclass
class _Keeper(Observer):
    """Keeps the states after these steps, as files would."""

    after: Sequence[int] = ()
    folder: Path = Path()
    step: int = 0
    kept: dict[int, Path] = field(default_factory=dict)

    def checkpoint(self, state: Callable[[], TrainingState], epoch_ended: bool) -> None:
        self.step += 1
        if self.step in self.after:
            self.kept[self.step] = self.folder / f"{self.step}.state"
            self.kept[self.step].write_bytes(state().to_bytes())


@dataclass
class _Trained:
    """Two are equal when all their bits are."""

    network: dict[str, Tensor]
    progress: Progress

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, _Trained)
        same = all(torch.equal(tensor, other.network[name]) for name, tensor in self.network.items())
        return same and self._told == other._told

    __hash__ = None  # type: ignore[assignment]

    @property
    def _told(self) -> object:
        mask = dict(self.progress.mask or {})
        return (
            [each.model_copy(update={"seconds": 0.0}) for each in self.progress.history],
            {name: keep.tolist() for name, keep in mask.items()},
        )


def _train(
    examples: Examples,
    course: Course,
    *,
    capture: bool = True,
    progress: Progress | None = None,
    observer: Observer | None = None,
    resumed: TrainingState | None = None,
    teacher: nn.Module | None = None,
) -> _Trained:
    on = examples.images.device
    network, progress = fresh(MODEL, 1), progress or Progress()
    with reproducible(on):
        device.place(network, on)
        train(
            network,
            examples,
            course,
            progress,
            observer or Observer(),
            resumed=resumed,
            teacher=teacher,
            capture=capture,
        )
    return _Trained({name: tensor.cpu().clone() for name, tensor in network.state_dict().items()}, progress)


def _half() -> Progress:
    pick = generator(1, "test")
    return Progress(
        mask=Mask({name: torch.rand(p.shape, generator=pick) < 0.5 for name, p in fresh(MODEL, 1).named_parameters()})
    )


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda each: each["penalty"] if each else "none")
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_captured_step_computes_what_its_operations_do(
    examples: Examples, optimizer: dict[str, Any], penalty: dict[str, Any] | None
) -> None:
    spec = parse_spec(
        {
            "kind": "train",
            "dataset": {"name": "digits"},
            "regularization": penalty,
            "training": {"epochs": 3, "optimizer": optimizer, "learning_rate": 0.01, "warmup_epochs": 1},
        }
    )
    course = Course(spec.training, spec.regularization)  # type: ignore[union-attr]

    captured = _train(examples, course, progress=_half())

    assert captured == _train(examples, course, progress=_half(), capture=False)
    mask = _half().mask
    assert mask is not None
    assert all(not bool(captured.network[name][~keep].any()) for name, keep in mask.items())
    assert captured == _train(examples, course, progress=_half())
    assert captured != _train(examples, course)


def _everything(precision: str = "float32", pruning: type[Scored] = MagnitudePruning) -> Course:
    """What a course can have, but for a proximal step and a penalty, of which it can have one."""
    amount = {"method": "taylor" if pruning is TaylorPruning else "magnitude", "sparsity": 0.8}
    gradual = pruning.model_validate(
        {**amount, "schedule": {"name": "gradual", "begin_epoch": 1, "end_epoch": 3, "every_steps": 2}}
    )
    settings = FineTuningSpec.model_validate(
        {
            "epochs": 4,
            "random_shift": 2,
            "learning_rate_schedule": "cosine",
            "warmup_epochs": 1,
            "label_smoothing": 0.1,
            "select": "best",
            "precision": precision,
            "distillation": {"teacher": {"job_id": "job_" + "a" * 32}, "weight": 0.5},
        }
    )
    return Course(settings, ProximalL1(penalty="l1-proximal"), gradual=gradual, keep_epoch=2)


@pytest.fixture(scope="module")
def teacher(gpu: torch.device) -> nn.Module:
    network = fresh(ModelSpec(channels=(3, 4, 5), hidden=9), 5).eval().requires_grad_(False)
    device.place(network, gpu)
    return network


@pytest.mark.parametrize(
    ("precision", "pruning"), [("float32", MagnitudePruning), ("float32", TaylorPruning), ("bf16", MagnitudePruning)]
)
def test_with_all_that_a_course_can_have_captured_steps_go_on_from_any_state_to_the_same_bits(
    examples: Examples, teacher: nn.Module, tmp_path: Path, precision: str, pruning: type[Scored]
) -> None:
    course = _everything(precision, pruning)
    keeper = _Keeper(after=(1, STEPS - 1, STEPS, 2 * STEPS + 1, 3 * STEPS), folder=tmp_path)

    whole = _train(examples, course, teacher=teacher, observer=keeper)

    assert whole == _train(examples, course, teacher=teacher, capture=False)
    assert whole.progress.mask is not None
    assert whole.progress.mask.sparsity > 0.7
    assert len(keeper.kept) == len(keeper.after)
    for path in keeper.kept.values():
        state = resume.load(path)
        assert whole == _train(examples, course, teacher=teacher, resumed=state, progress=state.progress)


def test_recording_draws_no_random_numbers(examples: Examples, gpu: torch.device) -> None:
    before = torch.get_rng_state(), torch.cuda.get_rng_state(gpu)
    _train(examples, Course(TrainingSpec(epochs=1)))
    after = torch.get_rng_state(), torch.cuda.get_rng_state(gpu)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_a_gpu_learns_what_the_cpu_does(examples: Examples) -> None:
    """By what the network computes. The bias of a convolution before BatchNorm has no gradient but rounding, which Adam
    makes steps of."""
    course = Course(TrainingSpec(epochs=4))
    here = Examples(*(tensor.cpu() for tensor in vars(examples).values()))
    on_gpu, on_cpu = (_train(each, course).progress.history for each in (examples, here))
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-3)
        assert ours.accuracy == pytest.approx(theirs.accuracy, abs=0.02)
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=0.02)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("size", [(28, 28), (7, 9)])
def test_a_layer_s_own_kernels_compute_what_pytorch_s_do(
    gpu: torch.device, size: tuple[int, int], *, pooled: bool
) -> None:
    drawn = torch.randn(20, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for own in (True, True, False):
        norm = nn.BatchNorm2d(3).to(gpu, torch.float32 if own else torch.float64)
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
            norm.bias.copy_(torch.tensor([0.5, 0.25, -0.125]))
        features = drawn.to(gpu, norm.weight.dtype).requires_grad_(True)
        bias = torch.tensor([1.0, -1.0, 0.0], device=gpu, dtype=norm.weight.dtype, requires_grad=True)
        if own:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            running = Running(norm.running_mean, norm.running_var, 0.1, norm.eps)
            out = normalized(features, Affine(bias, norm.weight, norm.bias), running, pooled=pooled)
        else:
            out = norm(features + bias[:, None, None])
            out = (functional.max_pool2d(out, 2) if pooled else out).relu()
        (out * torch.linspace(-1, 1, out.numel(), device=gpu).view_as(out)).sum().backward()  # type: ignore[no-untyped-call]
        made = (out, features.grad, bias.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var)
        found.append([tensor.detach() for tensor in made if tensor is not None])
    assert all(torch.equal(*pair) for pair in zip(found[0], found[1], strict=True))
    for ours, theirs in zip(found[0], found[2], strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("width_in", "width_out", "size", "kernel"),
    [
        (1, 16, (28, 28), 5),
        (16, 16, (28, 28), 3),
        (16, 32, (14, 14), 3),
        (3, 5, (9, 11), 5),
        (40, 50, (64, 8), 3),
        (1, 1, (8, 8), 3),
    ],
)
def test_a_convolution_s_own_kernels_compute_what_pytorch_s_do(
    gpu: torch.device, width_in: int, width_out: int, size: tuple[int, int], kernel: int
) -> None:
    stream = torch.Generator().manual_seed(1)
    images = torch.randn(20, width_in, *size, generator=stream, dtype=torch.float64).to(gpu)
    weight = torch.randn(width_out, width_in, kernel, kernel, generator=stream, dtype=torch.float64).to(gpu)
    slopes = torch.randn(20, width_out, *size, generator=stream, dtype=torch.float64).to(gpu)

    def computed(convolve: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (images, weight)]
        with reproducible(gpu):
            out = convolve(*inputs)
            return [out.detach(), *torch.autograd.grad(out, inputs, slopes.to(dtype))]

    once, again = (computed(convolved, torch.float32) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(once, again, strict=True))
    exact = computed(lambda read, by: functional.conv2d(read, by, padding=kernel // 2), torch.float64)
    for ours, theirs in zip(once, exact, strict=True):
        # In parts of the largest: of sums over as many terms, the small ones are differences.
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2e-6 * float(theirs.abs().max()))


def test_a_convolution_of_many_images_has_the_bits_of_that_of_few(gpu: torch.device) -> None:
    stream = torch.Generator().manual_seed(1)
    images = torch.randn(1_000, 16, 28, 28, generator=stream).to(gpu)
    weight = torch.randn(32, 16, 3, 3, generator=stream).to(gpu)

    def computed(images: Tensor) -> list[Tensor]:
        read = images.clone().requires_grad_()
        out = convolved(read, weight)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), read)]

    for many, few in zip(computed(images), computed(images[:3]), strict=True):
        assert torch.equal(many[:3], few)


def test_a_state_of_a_gpu_is_gone_on_from_on_a_cpu(examples: Examples, tmp_path: Path) -> None:
    course, keeper = Course(TrainingSpec(epochs=2)), _Keeper(after=(STEPS,), folder=tmp_path)
    _train(examples, course, observer=keeper)
    here = Examples(*(tensor.cpu() for tensor in vars(examples).values()))
    for on in (here, examples):
        state = resume.load(keeper.kept[STEPS])
        assert len(_train(on, course, resumed=state, progress=state.progress).progress.history) == 2


def test_a_loss_that_is_no_number_is_told_at_the_end_of_its_epoch(examples: Examples) -> None:
    spoiled = Examples(examples.images * torch.inf, *list(vars(examples).values())[1:])
    with pytest.raises(NonFiniteLoss, match=f"training step {STEPS}"):
        _train(spoiled, Course(TrainingSpec(epochs=2)))


@pytest.mark.parametrize("size", [(28, 28), (7, 9)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooling_on_a_gpu_says_what_pytorch_s_does(
    gpu: torch.device, size: tuple[int, int], layout: torch.memory_format
) -> None:
    drawn = torch.randint(0, 3, (2, 3, *size), generator=torch.Generator().manual_seed(1)).float()
    found = []
    for pool in (MaxPool(), lambda images: functional.max_pool2d(images, 2)):
        images = drawn.to(gpu).contiguous(memory_format=layout).requires_grad_(True)
        pooled = pool(images)
        pooled.square().sum().backward()
        assert images.grad is not None
        found.append((pooled.detach(), images.grad))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_on_a_gpu_gives_the_same_files_each_time(tmp_path: Path, precision: str) -> None:
    spec = parse_spec(
        {
            "kind": "train",
            "dataset": {"name": "digits", "validation_images": 100},
            "model": {"channels": [4, 4, 8], "hidden": 16},
            "training": {"epochs": 3, "device": "cuda", "precision": precision},
            "pruning": {
                "method": "taylor",
                "sparsity": 0.7,
                "recalibrate_batchnorm": True,
                "schedule": {"name": "gradual", "begin_epoch": 1, "end_epoch": 2, "every_steps": 5},
            },
            "fine_tuning": {"epochs": 1},
            "sensitivity": {"sparsities": [0.5, 0.9]},
        }
    )
    found = []
    for name in ("one", "two"):
        out = tmp_path / name
        out.mkdir()
        result = pipeline.run(spec, datasets=DatasetStore(None), inputs={}, out=out)
        receipt = json.loads((out / "manifest.json").read_text())["receipt"]
        assert (receipt["device"], receipt["precision"], receipt["kernels"]) == ("cuda", precision, "own")
        assert result.accuracy_after > 0.3  # type: ignore[union-attr]
        files = ("model.safetensors", "dense.safetensors", "histogram.json", "packed.npz")
        found.append([hashlib.sha256((out / each).read_bytes()).hexdigest() for each in files])
    assert found[0] == found[1]


def test_warming_up_leaves_a_gpu_ready() -> None:
    pipeline.warm_up()


@pytest.fixture
def trusted() -> Iterator[None]:
    yield
    kernels.TRUSTED.set()


@pytest.mark.usefixtures("trusted")
def test_own_kernels_stand_their_trial_here_and_without_them_training_goes_on(
    gpu: torch.device, examples: Examples
) -> None:
    with reproducible(gpu):
        assert trial.difference(gpu) < trial.TOLERANCE / 2
    assert kernels.usable(examples.images)
    kernels.TRUSTED.clear()
    assert not kernels.usable(examples.images)
    with reproducible(gpu):
        assert trial.difference(gpu) < trial.TOLERANCE / 2
    assert len(_train(examples, Course(TrainingSpec(epochs=2))).progress.history) == 2


BROKEN = """
import torch
from worker.engine import device, kernels

text = 'extern "C" __global__ void spoil(float* values) { values[1LL << 45] = 1; }'
values = torch.zeros(1, device="cuda")
assert not device.is_broken()
kernels.build(text, "spoil")(grid=(1, 1, 1), block=(1, 1, 1), args=[values])
assert device.is_broken()
"""


@pytest.mark.usefixtures("gpu")
def test_a_process_notices_that_it_can_compute_no_more() -> None:
    subprocess.run([sys.executable, "-c", BROKEN], check=True, timeout=120)
