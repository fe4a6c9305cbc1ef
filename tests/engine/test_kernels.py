"""What our own kernels compute, and the code that launches them, on an emulated GPU. What a real one makes of them,
`test_cuda.py` and `test_together_cuda.py` check."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor
from torch.cuda._utils import _nvrtc_compile
from torch.nn import functional
from torch.utils import cpp_extension

from tests.engine.emulated import Gpu, Kernel
from tests.engine.layers import LAYERS, Layer, computed, drawn, has_bits_of_each_alone, what_is_no_number_stays
from worker.engine.convolve import Outputs, convolved
from worker.engine.normalize import Affine, Running, normalized

pytestmark = pytest.mark.usefixtures("emulated", "one_thread")

ON_CPU = torch.device("cpu")
ALL: list[Layer] = [
    *LAYERS,
    (40, 50, (64, 8), 3, False),
    (1, 1, (8, 8), 3, False),
    (2, 3, (41, 50), 5, True),  # three blocks take an image's rows, the last of them one fewer
]
IMAGES = 3
SIZES = [*((layer, IMAGES) for layer in ALL), ((1, 1, (8, 8), 3, True), 101)]
"""Layers and images. Of as many, there are shares of two and three, and of six and seven."""
NEAR = 2e-6
"""In parts of the largest number, or of 1: of sums over as many terms, the small ones are differences."""


def _are_near(ours: Iterable[Tensor], exact: Iterable[Tensor]) -> bool:
    pairs = list(zip(ours, exact, strict=True))
    return all(float((one - other).abs().max()) <= NEAR * max(1, float(other.abs().max())) for one, other in pairs)


def _in_both_orders(gpu: Gpu, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What it computes, which is the same to the bit with the first and with the last of threads and blocks ahead."""
    ascending = compute()
    gpu.descending = True
    assert all(torch.equal(*pair) for pair in zip(ascending, compute(), strict=True))
    return ascending


Convolution = Callable[[Tensor, Tensor], Tensor]


def _drawn(layer: Layer, images: int, groups: int = 1) -> list[Tensor]:
    """For each group: images, weight and the gradient of what comes out of the convolution."""
    return [*drawn(layer, groups, images, ON_CPU)[:2], drawn((*layer[:-1], False), groups, images, ON_CPU)[-1]]


def _convolved(convolve: Convolution, images: Tensor, weight: Tensor, slopes: Tensor) -> list[Tensor]:
    """What comes out, and the gradients by the images and the weight."""
    inputs = [each.detach().requires_grad_() for each in (images, weight)]
    out = convolve(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, slopes)]


@pytest.mark.parametrize(("layer", "images"), SIZES, ids=str)
def test_a_convolution_computes_what_pytorch_s_does(layer: Layer, images: int, emulated: Gpu) -> None:
    given = [each[0] for each in _drawn(layer, images)]

    ours = _in_both_orders(emulated, lambda: _convolved(convolved, *given))

    def in_double(images: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(images, weight, padding=layer[3] // 2)

    assert _are_near(ours, _convolved(in_double, *(each.double() for each in given)))


def _has_bits_of_each_alone(given: list[Tensor]) -> bool:
    """Whether the convolutions of groups side by side come to what each comes to by itself."""
    groups, (images, weight, slopes) = len(given[0]), given
    beside = images.transpose(0, 1).flatten(1, 2), weight.flatten(0, 1), slopes.transpose(0, 1).flatten(1, 2)
    *of_images, by_weight = _convolved(lambda read, by: convolved(read, by, groups), *beside)
    together = zip(*(each.chunk(groups, dim=1) for each in of_images), by_weight.chunk(groups), strict=True)
    alone = (_convolved(convolved, *each) for each in zip(*given, strict=True))
    return all(all(map(torch.equal, *pair)) for pair in zip(together, alone, strict=True))


@pytest.mark.parametrize("layer", [*LAYERS, ALL[-1]], ids=str)
def test_convolutions_side_by_side_have_the_bits_of_each_alone(layer: Layer) -> None:
    assert _has_bits_of_each_alone(_drawn(layer, IMAGES, groups=2))


@pytest.mark.parametrize("layer", LAYERS[:3], ids=str)
def test_so_they_have_where_they_fill_a_gpu_and_each_alone_does_not(layer: Layer, emulated: Gpu) -> None:
    given = _drawn(layer, IMAGES, groups=2)
    one, weight = given[0][0], given[1]
    of_one = (Outputs.of(one, weight[0], processors).each for processors in range(1, 100))
    emulated.multi_processor_count = next(count for count, each in enumerate(of_one, 1) if each == 4)
    together = Outputs.of(one.repeat(1, 2, 1, 1), weight.flatten(0, 1), emulated.multi_processor_count)
    assert together.each == 8

    assert _has_bits_of_each_alone(given)


Rest = Callable[[Tensor, Affine, Running], Tensor]


def _rest(compute: Rest, features: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, slopes: Tensor) -> list[Tensor]:
    """What comes out, the running statistics, and the gradients by the features and the parameters."""
    inputs = [each.detach().requires_grad_() for each in (features, bias, scale, shift)]
    running = Running(torch.zeros_like(bias), torch.ones_like(bias), 0.1, 1e-5)
    out = compute(inputs[0], Affine(*inputs[1:]), running)
    return [out.detach(), running.mean, running.variance, *torch.autograd.grad(out, inputs, slopes)]


def _own(layer: Layer) -> Rest:
    return lambda *read: normalized(*read, pooled=layer[-1])


def _pytorch_s(layer: Layer) -> Rest:
    def compute(features: Tensor, affine: Affine, running: Running) -> Tensor:
        mean, variance, *settings = running
        biased = features + affine.bias[:, None, None]
        out = functional.batch_norm(biased, mean, variance, *affine[1:], True, *settings)
        return (functional.max_pool2d(out, 2) if layer[-1] else out).relu()

    return compute


def _features(layer: Layer, images: int, channels: int = 3) -> list[Tensor]:
    """Features, bias, scale, shift and the gradient of what comes out."""
    features, _, *others = (each[0] for each in drawn((channels, channels, *layer[2:]), 1, images, ON_CPU))
    return [features, *others]


@pytest.mark.parametrize(("layer", "images"), SIZES, ids=str)
def test_the_rest_of_a_layer_computes_what_pytorch_s_does(layer: Layer, images: int, emulated: Gpu) -> None:
    given = _features(layer, images)

    ours = _in_both_orders(emulated, lambda: _rest(_own(layer), *given))

    assert _are_near(ours, _rest(_pytorch_s(layer), *(each.double() for each in given)))


def test_of_equal_numbers_the_first_is_the_largest_and_at_zero_there_is_no_slope() -> None:
    layer = LAYERS[1]
    given = _features(layer, IMAGES)
    given[0].sign_()
    given[0][:, 0], given[1][0], given[3][0] = 1, 0, 0  # the first channel comes to zero

    assert _are_near(_rest(_own(layer), *given), _rest(_pytorch_s(layer), *(each.double() for each in given)))


def test_where_all_numbers_are_large_and_the_same_rounding_makes_none_that_is_no_number() -> None:
    layer = LAYERS[3]
    features, *others = _features(layer, IMAGES, channels=16)  # the variance of some comes out below zero
    same = (1e7 * features[:1, :, :1, :1]).expand_as(features)

    out, *found = _rest(_own(layer), same, *others)

    assert torch.equal(out, others[2].relu()[:, None, None].expand_as(out))
    assert all(bool(each.isfinite().all()) for each in found)


def test_in_whichever_order_numbers_lie_in_memory_they_come_to_the_same_bits() -> None:
    def computed(form: torch.memory_format) -> list[Tensor]:
        images, weight, slopes = (each[0].to(memory_format=form) for each in _drawn(LAYERS[3], IMAGES))
        rest = slopes, *torch.ones(3, LAYERS[3][1]), slopes.cos()
        return [*_convolved(convolved, images, weight, slopes), *_rest(_own(LAYERS[3]), *rest)]

    assert all(map(torch.equal, computed(torch.contiguous_format), computed(torch.channels_last)))


@pytest.mark.parametrize("layer", [LAYERS[1], LAYERS[3]], ids=str)
def test_layers_side_by_side_have_the_bits_of_each_alone(layer: Layer) -> None:
    assert has_bits_of_each_alone(drawn(layer, 2, IMAGES, ON_CPU), layer)


def test_what_is_no_number_shows_and_stays_with_its_member() -> None:
    assert what_is_no_number_stays(drawn(LAYERS[1], 2, IMAGES, ON_CPU), LAYERS[1])


GPUS = ("75", "90", "120")
"""Compute capabilities: the oldest that PyTorch is built for, a common one, and a new one."""


@pytest.mark.skipif(torch.version.cuda is None, reason="built without CUDA, this PyTorch has no compiler for GPUs")
def test_they_compile_for_gpus_where_no_toolkit_of_cuda_is_installed(
    emulated: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: dict[str, str] = {}

    def build(text: str, name: str) -> Kernel:
        for capability in GPUS:
            _, built[name] = _nvrtc_compile(text, name, capability)
        return emulated.compile(text, name)

    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr(torch.cuda, "_compile_kernel", build)
    computed(drawn(LAYERS[1], 1, IMAGES, ON_CPU), LAYERS[1])

    names = ("convolve", "weigh", "add_shares", "sums", "forward", "backward_sums", "backward")
    assert built == {name: name for name in names}
