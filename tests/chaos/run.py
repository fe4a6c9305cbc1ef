"""Many short jobs on real processes under many random faults, and the verdict."""

from __future__ import annotations

import hashlib
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch

from app.contract.spec import parse_spec
from app.local import Stack, stack
from app.local.ports import free_port, http_address
from app.local.processes import Child, dies_with_parent
from app.local.supervisor import Supervisor
from tests.chaos.faults import FAULTS, PASSING, World
from tests.chaos.verdict import violations
from tests.faults.cluster import SETTINGS, Cluster
from tests.specs import Document, train_spec
from tests.waiting import wait_until
from worker.engine import pipeline
from worker.engine.data import DatasetStore

WORKERS = 2
SETTLE_SECONDS = 300
GAP_SECONDS = (0.5, 3.0)
"""Between two faults."""

# A job that is hit again and again is not a poison job.
CHAOS_SETTINGS = {**SETTINGS, "SECATEUR_MAX_ATTEMPTS": "20"}

# A few seconds of work each, so that both workers are at it for as long as there are faults.
VARIANTS: Mapping[str, Document] = {
    "plain": train_spec(training={"epochs": 25, "seed": 1}),
    "l1": train_spec(training={"epochs": 20, "seed": 2}, regularization={"penalty": "l1"}),
    "wide": train_spec(model={"channels": [16, 16, 32], "hidden": 300}, training={"epochs": 6}),
    "small-batches": train_spec(training={"epochs": 6, "batch_size": 8}),
}

Say = Callable[[str], None]


@dataclass
class Tally:
    """What was done and what came of it."""

    faults: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def run(*, seed: int, jobs: int, faults: int, say: Say) -> Tally:
    """`jobs` jobs under `faults` faults. Chance is `seed`'s: the same faults in the same order."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="secateur-chaos-") as folder, _service(Path(folder)) as (world, clients):
        world.chance.seed(seed)
        expected = {name: _uninterrupted(spec, Path(folder) / name) for name, spec in VARIANTS.items()}
        submitting = threading.Thread(target=_submit, args=(clients, jobs, random.Random(seed)), daemon=True)
        submitting.start()
        _inject(world, faults, tally, say)
        world.wake_all()
        submitting.join()
        say("the faults are over, the jobs go on")
        for job in _settled(world.cluster, jobs):
            tally.attempts[job["attempt"]] += 1
            world.cluster.wait_until_tidy(job)
            tally.violations += violations(world.cluster, job, expected)
        if sum(tally.attempts.values()) < jobs:
            tally.violations.append(f"{jobs} jobs were accepted and {sum(tally.attempts.values())} are there")
    return tally


def _uninterrupted(spec: Document, out: Path) -> str:
    """sha256 of the model, by the engine alone."""
    torch.set_num_threads(1)
    out.mkdir()
    pipeline.run(parse_spec(spec), datasets=DatasetStore(None), inputs={}, out=out)
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


@contextmanager
def _service(folder: Path) -> Iterator[tuple[World, Sequence[httpx.Client]]]:
    """The embedded stack, and a second API beside it."""
    quiet: Say = lambda _: None  # noqa: E731
    with stack(state_dir=folder / "state", workers=WORKERS, env=CHAOS_SETTINGS, notify=quiet) as running:
        port = free_port("127.0.0.1")
        second = _second_api(running, port)
        supervisor = Supervisor(quiet)
        try:
            second.start()
            supervisor.watch([second])
            headers = {"Authorization": f"Bearer {running.api_key}"}
            urls = (running.url, http_address("127.0.0.1", port))
            clients = [httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) for url in urls]
            cluster = Cluster(running, clients[0])
            cluster.wait_until_ready(workers=WORKERS)
            yield World(cluster, [running.children["api"], second], random.Random()), clients
        finally:
            supervisor.halt()
            second.stop()
            supervisor.end()


def _second_api(running: Stack, port: int) -> Child:
    command = [sys.executable, "-P", "-m", "app.cli", "api", "--port", str(port)]
    return Child(
        name="api-2",
        command=dies_with_parent(command, "TERM"),
        environment=running.environment,
        folder=running.state_dir,
        log=running.state_dir / "logs" / "api-2.log",
        record=running.state_dir / "processes" / "api-2.json",
        stop_seconds=15.0,
    )


def _submit(clients: Sequence[httpx.Client], jobs: int, chance: random.Random) -> None:
    """Submit them a few at a time, to either API, until so many were accepted."""
    accepted = 0
    while accepted < jobs:
        variant = chance.choice(sorted(VARIANTS))
        try:
            answer = chance.choice(clients).post("/v1/jobs", json={**VARIANTS[variant], "labels": {"variant": variant}})
        except httpx.HTTPError:
            continue  # it may have been stored all the same: it is then one more
        accepted += answer.status_code == 202
        time.sleep(chance.uniform(0, 2))


def _inject(world: World, faults: int, tally: Tally, say: Say) -> None:
    while tally.faults.total() < faults:
        fault = world.chance.choice(FAULTS)
        try:
            fault(world)
        except PASSING:
            continue
        tally.faults[fault.__name__] += 1
        say(f"fault {tally.faults.total()}: {fault.__name__}")
        time.sleep(world.chance.uniform(*GAP_SECONDS))


def _settled(cluster: Cluster, jobs: int) -> Sequence[Document]:
    """All jobs, once each is done; after SETTLE_SECONDS as they are."""

    def done() -> list[Document] | None:
        found = _all_jobs(cluster)
        return found if len(found) >= jobs and all(job["done"] for job in found) else None

    try:
        return wait_until(done, timeout=SETTLE_SECONDS, what="every job is done")
    except AssertionError:
        return _all_jobs(cluster)


def _all_jobs(cluster: Cluster) -> list[Document]:
    found: list[Document] = []
    url = "/v1/jobs?limit=100"
    try:
        while url:
            answer = cluster.http.get(url).raise_for_status()
            found += answer.json()["items"]
            url = answer.links.get("next", {}).get("url", "")
    except httpx.HTTPError:
        return []
    return found
