"""Runs the recipe of several seeds side by side.

A module of its own, as a spawned process does not import the `__main__` of a package.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.frontier.jobs import carry_out
from benchmarks.frontier.recipe import chains
from benchmarks.frontier.results import keep
from worker.engine.data import DatasetStore


def run_seeds(seeds: Collection[int], lines: Collection[str], *, data: Path, work: Path, models: Path) -> None:
    """Run what is not done yet of these lines; their networks are kept in `models` as soon as they are there.

    A thread for each seed: the figures depend on their number, and two networks side by side are faster than one on
    two threads.
    """
    processes = min(len(seeds), os.cpu_count() or 1)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        _consume(pool.map(partial(_run_seed, lines, data, work, models), seeds))


def _consume(results: Iterable[None]) -> None:
    """So that what a process raised is raised here."""
    for _ in results:
        pass


def _run_seed(lines: Collection[str], data: Path, work: Path, models: Path, seed: int) -> None:
    torch.set_num_threads(1)
    datasets = DatasetStore(data)
    for chain in chains(seed):
        if chain.line in lines:
            carry_out(chain, work, datasets)
            keep(chain, work, models)
