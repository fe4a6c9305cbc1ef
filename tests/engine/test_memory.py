from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from worker.engine import memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [torch.ones(size << 20, dtype=torch.uint8) for size in (4, 40, 8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def size():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
faults()
returned = faults()
memory.keep_freed()
faults()
kept, before = faults(), size()
memory.give_back()
print(returned, kept, before - size())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux alone can be told to")
def test_what_is_freed_is_there_for_the_next_step_until_it_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    returned, kept, given_back = map(int, done.stdout.split())
    assert kept < 100
    assert returned > 10 * 40 << 8  # 40 MB in pages of 4 kB, in half of the rounds
    assert given_back > 40 << 20
