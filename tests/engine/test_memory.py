from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from worker.engine import memory
if sys.argv[1] == "kept":
    memory.keep_freed()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [torch.ones(size << 20, dtype=torch.uint8) for size in (4, 40, 8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
if sys.argv[1] == "kept":
    size = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
    before = size()
    memory.give_back()
    assert before - size() > 40 << 20
"""


def _faults(how: str) -> int:
    command = [sys.executable, "-c", SCRIPT, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux alone can be told to")
def test_what_is_freed_is_there_for_the_next_step_until_it_is_given_back() -> None:
    assert _faults("kept") < 100
    assert _faults("returned") > 10 * 40 << 8  # 40 MB in pages of 4 kB, in half of the rounds
