"""`python -m benchmarks.frontier DATA`: run the recipe, keep its networks, write `benchmarks/frontier.md` and the plot.

DATA holds MNIST in torchvision's layout. Each seed takes about two hours of one core. What was done is kept in the
folder `--work` and not done again. Without DATA, only text and plot are made, of what `benchmarks/frontier/models` has.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.frontier.jobs import carry_out
from benchmarks.frontier.recipe import chains
from benchmarks.frontier.results import keep, kept
from benchmarks.frontier.writing import draw, write
from worker.engine.data import DatasetStore

HERE = Path(__file__).parent
MODELS = HERE / "models"


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.data is not None:
        run_seed = partial(_run_seed, arguments.lines, arguments.work, arguments.data)
        # One thread each: the figures depend on their number, and two networks side by side are faster than one on
        # two threads.
        processes = min(len(arguments.seeds), os.cpu_count() or 1)
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            list(pool.map(run_seed, arguments.seeds))
    results = kept(MODELS)
    (HERE.parent / "frontier.md").write_text(write(results))
    (HERE.parent / "frontier.png").write_bytes(draw(results))


def _run_seed(lines: Sequence[str], work: Path, data: Path, seed: int) -> None:
    torch.set_num_threads(1)
    datasets = DatasetStore(data)
    for chain in chains(seed):
        if chain.line in lines:
            carry_out(chain, work, datasets)
            keep(chain, work, MODELS)


def _parser() -> argparse.ArgumentParser:
    every = sorted({chain.line for chain in chains(0)})
    parser = argparse.ArgumentParser(
        description="Prune MNIST networks as far as they go, and write down how far that is."
    )
    parser.add_argument(
        "data", type=Path, nargs="?", help="folder with MNIST/raw; without it, only the texts are written"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lines", nargs="+", choices=every, default=every, help="parts of the recipe")
    parser.add_argument("--work", type=Path, default=Path(".frontier"), help="folder for what has been done already")
    return parser


if __name__ == "__main__":
    main()
