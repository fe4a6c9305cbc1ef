"""The emulated GPU finds wrong kernels out. Each stands beside a right one, with which all is well."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engine.emulated import COMPILER, NO_COMPILER, Faulty, Gpu, NotCompiled, NotLaunched, in_place_of_cuda
from worker.engine import kernels

THREADS = 64


def _run(gpu: Gpu, body: str, *, descending: bool = False) -> Tensor:
    """What a kernel of that body writes into `out`, where `at` is the number of its thread, of all in both blocks."""
    gpu.descending = descending
    taken = "float *out, const float *in, int offset"
    start = "int own = threadIdx.x, at = blockIdx.x * blockDim.x + own;"
    out = torch.empty(2 * THREADS)
    kernel = gpu.compile(f'extern "C" __global__ void tried({taken}) {{\n{start}\n{body}\n}}', "tried")
    kernel(grid=(2, 1, 1), block=(THREADS, 1, 1), args=[out, torch.ones(THREADS), 1], shared_mem=4 * THREADS)
    return out


STATIC = f"__shared__ float shared[{THREADS}];"
DYNAMIC = "extern __shared__ float4 room[]; float *shared = (float *)room;"
KEPT = "shared[own] = 1; out[at] = shared[own];"


@pytest.mark.parametrize(
    "body",
    [
        # Some read what others have yet to write.
        "shared[own] = at; BARRIER out[at] = shared[63 - own];",
        # Some write what others have yet to read.
        "shared[own] = at; __syncthreads(); float read = shared[(own + 1) % 64]; BARRIER shared[own] = read;"
        "__syncthreads(); out[at] = shared[own];",
    ],
)
@pytest.mark.parametrize("memory", [STATIC, DYNAMIC])
def test_what_lacks_a_barrier_depends_on_the_order_of_threads(emulated: Gpu, memory: str, body: str) -> None:
    for barrier, is_there in (("__syncthreads();", True), ("", False)):
        text = memory + body.replace("BARRIER", barrier)
        both = [_run(emulated, text, descending=descending) for descending in (False, True)]
        assert torch.equal(*both) == is_there


def test_what_blocks_make_of_one_another_depends_on_their_order(emulated: Gpu) -> None:
    body = "out[at] = blockIdx.x; if (blockIdx.x == 1) out[at] = out[own];"
    first, then = (_run(emulated, body, descending=descending) for descending in (False, True))
    assert bool(first.isfinite().all())
    assert not torch.equal(first, then)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("out[at] = 1;", "if (at) out[at] = 1;"),
        (STATIC + KEPT, STATIC + "if (blockIdx.x == 0)" + KEPT),
        (DYNAMIC + KEPT, DYNAMIC + "if (blockIdx.x == 0)" + KEPT),
    ],
)
def test_what_nobody_wrote_is_no_number(emulated: Gpu, right: str, wrong: str) -> None:
    assert bool(_run(emulated, right).isfinite().all())
    assert bool(_run(emulated, wrong).isnan().any())


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("out[at] = in[own];", "out[at] = in[at];", "thread (0, 0) of block (1, 0, 0): it reads"),
        ("out[at] = in[own];", "out[at] = in[own - offset];", "thread (0, 0) of block (0, 0, 0): it reads"),
        ("out[at] = 1;", "out[1LL << 40] = 1;", "it writes"),
        ("out[at] = 1;", "out[at + offset] = 1;", "thread (63, 0) of block (1, 0, 0): it writes"),
        ("out[at] = 1;", "out[at - offset] = 1;", "thread (0, 0) of block (0, 0, 0): it writes"),
        (DYNAMIC + "out[at] = shared[own];", DYNAMIC + "out[at] = shared[own + offset];", "thread (63, 0)"),
        (DYNAMIC + "shared[own] = 1;", DYNAMIC + "shared[own + offset] = 1;", "thread (63, 0)"),
        (DYNAMIC + "shared[own] = 1;", DYNAMIC + "shared[own - offset] = 1;", "it writes"),
        (STATIC + "shared[own] = 1;", STATIC + "shared[own + offset] = 1;", "block (0, 0, 0): it goes beyond an array"),
        ("float own_two[2]; own_two[own % 2] = 1;", "float own_two[2]; own_two[own % 3] = 1;", "beyond an array"),
        ("__syncthreads();", "if (own < 32) __syncthreads();", "thread 0 is in line 3, and thread 32 in 0"),
        ("__syncthreads();", "if (own < 32) __syncthreads();\nelse __syncthreads();", "thread 0 is in line 3"),
        ("__syncthreads();", "if (blockIdx.x && own) __syncthreads();", "block (1, 0, 0)"),
        (DYNAMIC + "room[0] = room[own / 4];", DYNAMIC + "room[0] = *(float4 *)(shared + own / 4);", "aligned"),
    ],
)
def test_what_no_kernel_may_do_is_told(emulated: Gpu, right: str, wrong: str, told: str) -> None:
    _run(emulated, right)
    with pytest.raises(Faulty, match=re.escape(told)):
        _run(emulated, wrong)
    _run(emulated, right)


BOUND = """
__device__ float other() { __shared__ float shared[1024]; return shared[0]; }
extern "C" __global__ void another(float *out) { *out = other(); }
extern "C" __global__ void __launch_bounds__(8 * 8) tried(float *out) {
    __shared__ float shared[256];
    shared[16 * threadIdx.y + threadIdx.x] = 1;
    __syncthreads();
    *out = shared[0];
}
"""
"""Of 1 KiB of shared memory: what another kernel has does not count."""
Sizes = tuple[tuple[int, int, int], tuple[int, int, int], int]


@pytest.mark.parametrize("sizes", [((1, 65_535, 1), (1, 1, 1), 0), ((1, 1, 1), (16, 4, 1), 47 * 1024)], ids=str)
def test_what_a_gpu_would_start_is_started(emulated: Gpu, sizes: Sizes) -> None:
    out = torch.zeros(1)
    emulated.compile(BOUND, "tried")(sizes[0], sizes[1], [out], sizes[2])
    assert out.item() == 1


@pytest.mark.parametrize(
    "sizes",
    [
        ((1, 65_536, 1), (1, 1, 1), 0),
        ((1, 1, 65_536), (1, 1, 1), 0),
        ((2**31, 1, 1), (1, 1, 1), 0),
        ((0, 1, 1), (1, 1, 1), 0),
        ((1, 1, 1), (65, 1, 1), 0),
        ((1, 1, 1), (13, 5, 1), 0),
        ((1, 1, 1), (1, 1, 2), 0),
        ((1, 1, 1), (0, 1, 1), 0),
        ((1, 1, 1), (1, 1, 1), 47 * 1024 + 1),
    ],
    ids=str,
)
def test_what_a_gpu_would_not_start_is_refused(emulated: Gpu, sizes: Sizes) -> None:
    with pytest.raises(NotLaunched, match="of"):
        emulated.compile(BOUND, "tried")(sizes[0], sizes[1], [torch.zeros(1)], sizes[2])


def test_a_block_has_1024_threads_at_most(emulated: Gpu) -> None:
    kernel = emulated.compile('extern "C" __global__ void tried(float *out) { out[threadIdx.x] = 1; }', "tried")
    out = torch.zeros(1025)
    kernel((1, 1, 1), (1024, 1, 1), [out])
    assert out.sum() == 1024
    with pytest.raises(NotLaunched, match="of 1024 at most"):
        kernel((1, 1, 1), (1025, 1, 1), [out])


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (0, torch.zeros(2, dtype=torch.float64)),
        (0, torch.zeros(2, 2).t()),
        (0, 1),
        (1, 2**31),
        (1, -(2**31) - 1),
        (1, 1.0),
        (2, 1),
        (2, "one"),
        (3, torch.zeros(2)),
        (3, torch.zeros(2, dtype=torch.bool)),
    ],
)
def test_arguments_that_a_kernel_would_take_for_others_are_refused(emulated: Gpu, place: int, wrong: object) -> None:
    text = 'extern "C" __global__ void tried(float *a, int b, double c, const unsigned char *d) { *a = b + c + *d; }'
    out = torch.zeros(1)
    given: list[object] = [out, -(2**31), 0.5, torch.ones(1, dtype=torch.uint8)]
    kernel = emulated.compile(text, "tried")

    kernel(grid=(1, 1, 1), block=(1, 1, 1), args=given)

    assert out.item() == -(2**31)  # and 1.5, which a float cannot tell
    for spoiled in ([*given[:place], wrong, *given[place + 1 :]], given[:place], [*given, wrong]):
        with pytest.raises(NotLaunched):
            kernel(grid=(1, 1, 1), block=(1, 1, 1), args=spoiled)


def test_two_tensors_in_one_memory_are_refused(emulated: Gpu) -> None:
    kernel = emulated.compile('extern "C" __global__ void tried(float *a, float *b) { *a = *b; }', "tried")
    both = torch.arange(2.0)
    kernel(grid=(1, 1, 1), block=(1, 1, 1), args=[both[:1], both[1:]])
    assert both.tolist() == [1, 1]
    for shared in ([both[1:], both], [both, both[1:]], [both, both]):
        with pytest.raises(NotLaunched, match="share"):
            kernel(grid=(1, 1, 1), block=(1, 1, 1), args=shared)


@pytest.mark.parametrize("taken", ["float a", "long a", "short *a"])
def test_a_kernel_that_takes_what_pytorch_cannot_give_is_not_compiled(emulated: Gpu, taken: str) -> None:
    with pytest.raises(NotCompiled, match="Kind"):
        emulated.compile(f'extern "C" __global__ void tried({taken}) {{}}', "tried")


def test_nothing_of_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if COMPILER is None:
        pytest.skip(NO_COMPILER)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = torch.cuda._compile_kernel, torch.cuda.get_device_properties
    images, parts = torch.ones(1, 1, 3, 5), torch.empty(1, 7, 2, dtype=torch.float64)
    sizes = {"THREADS": 8, "PARTS": 7, "HEIGHT": 3, "WIDTH": 5, "POOLED": 0}

    with in_place_of_cuda():
        kernels.launch(("normalize.cu",), "sums", (1, 7, 1), (8, 1), (images, parts, 1, 1), **sizes)

    assert parts.sum() == 30
    assert (torch.cuda._compile_kernel, torch.cuda.get_device_properties) == before
    assert kernels._compiled.cache_info().currsize == 0
    assert not hasattr(kernels._thread, "has_context") or torch.cuda.is_available()
    assert list(tmp_path.iterdir()) == []
