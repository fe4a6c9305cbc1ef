"""The memory that a worker's processes hold: at most, and after many jobs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from app.local import Stack
from benchmarks.bench.measuring import Setting
from benchmarks.bench.rows import Row
from benchmarks.bench.running import TRAIN, done, service, submitted
from benchmarks.bench.writing import number, table

JOBS, SOME = 200, 20
"""In a row; and how many of the first and of the last are compared, by their medians."""

GIVEN_BACK_SECONDS = 0.2
"""A job is told to be over a moment before its memory is given back. Looks taken at once saw either, a twentieth apart,
and what their medians told was how many of each there were."""


def measure(setting: Setting) -> tuple[Sequence[Row], str]:
    jobs, some = setting.work(JOBS, 8), setting.work(SOME, 4)
    with service(workers=1, data_dir=setting.data_dir) as (http, running):
        done(http, submitted(http, _whole(setting)))
        most = sum(_most(each.pid) for each in processes(running))
        held = []
        for _ in range(jobs):
            done(http, submitted(http, TRAIN))
            time.sleep(GIVEN_BACK_SECONDS)
            held.append(sum(each.memory_info().rss for each in processes(running)) / 1e9)
    rows = [
        Row(
            what=f"a worker's peak memory, {setting.dataset}",
            kind="value",
            unit="GB",
            ours=(most / 1e9,),
            must=1.2,
        ),
        Row(
            what=f"a worker's memory in the last {some} of {jobs} jobs",
            against=f"in the first {some}",
            kind="cost",
            unit="GB",
            ours=(statistics.median(held[-some:]),),
            plain=(statistics.median(held[:some]),),
            must=1.05,
        ),
    ]
    return rows, _text(setting, held)


def _whole(setting: Setting) -> dict[str, object]:
    """The default network, with all that is told of it."""
    return {
        "kind": "train",
        "dataset": {"name": setting.dataset},
        "training": {"epochs": 1},
        "regularization": {"penalty": "l1", "strength": 1e-4},
        "pruning": {"method": "magnitude", "sparsity": 0.9},
        "fine_tuning": {"epochs": 1},
        "sensitivity": {"sparsities": [0.5, 0.9]},
    }


def processes(running: Stack) -> list[psutil.Process]:
    """Of the first worker: the one that listens, and those that run jobs."""
    worker = psutil.Process(running.children["worker-1"].pid)
    return [worker, *worker.children(recursive=True)]


def _most(pid: int) -> int:
    """Bytes that a process has had in memory at once, by Linux."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _text(setting: Setting, held: Sequence[float]) -> str:
    counts = [count for count in (1, 5, 10, 20, 50, 100, 150, 200) if count <= len(held)]
    lines = [(str(count), number(held[count - 1])) for count in counts]
    return (
        "One worker with one thread, its two processes together, what is in memory of them; what they share counts "
        f"twice. At most: a training of the default network on {setting.dataset}, pruned, fine-tuned and measured. "
        f"Then {len(held)} small trainings on digits, one after another."
        f"\n\n{table(('jobs', 'GB'), lines)}"
    )
