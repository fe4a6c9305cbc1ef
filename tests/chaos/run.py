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
from tests.specs import Document, finished, prune_spec, train_spec
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
    ends: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def run(*, seed: int, jobs: int, faults: int, say: Say) -> Tally:
    """`jobs` jobs under `faults` faults. The choices are the seed's; whom they hit, and when, also the machine's."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="secateur-chaos-") as folder, _service(Path(folder)) as (world, clients):
        world.chance.seed(seed)
        source = finished(clients[0], VARIANTS["plain"])
        variants = {**VARIANTS, "prune": prune_spec(source["id"], dataset={"name": "digits"})}
        inputs = {source["id"]: world.cluster.folder(source["id"]) / "1"}
        expected = {name: _uninterrupted(spec, inputs, Path(folder) / name) for name, spec in variants.items()}
        accepted: list[str] = []
        submitting = threading.Thread(
            target=_submit, args=(clients, variants, jobs, accepted, random.Random(seed)), daemon=True
        )
        submitting.start()
        _inject(world, faults, tally, say)
        world.wake_all()
        submitting.join()
        say("the faults are over, the jobs go on")
        found = {job["id"]: job for job in _settled(world.cluster) if job["id"] != source["id"]}
        for job in found.values():
            tally.attempts[job["attempt"]] += 1
            tally.ends[job["status"]] += 1
            tally.violations += violations(world.cluster, job, expected, may_be_cancelled=job["id"] in world.cancelled)
        tally.violations += [f"{job_id} was accepted and is not there" for job_id in accepted if job_id not in found]
    return tally


def _uninterrupted(spec: Document, inputs: Mapping[str, Path], out: Path) -> str:
    """sha256 of the model, by the engine alone."""
    torch.set_num_threads(1)
    out.mkdir()
    pipeline.run(parse_spec(spec), datasets=DatasetStore(None), inputs=inputs, out=out)
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


def _submit(
    clients: Sequence[httpx.Client],
    variants: Mapping[str, Document],
    jobs: int,
    accepted: list[str],
    chance: random.Random,
) -> None:
    """Submit them a few at a time, to either API, until so many were accepted."""
    while len(accepted) < jobs:
        variant = chance.choice(sorted(variants))
        spec = {**variants[variant], "labels": {"variant": variant}}
        try:
            answer = chance.choice(clients).post("/v1/jobs", json=spec)
        except httpx.HTTPError:
            continue  # it may have been stored all the same: it is then one more
        if answer.status_code == 202:
            accepted.append(answer.json()["id"])
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


def _settled(cluster: Cluster) -> Sequence[Document]:
    """All jobs, once each is done; after SETTLE_SECONDS as they are."""

    def done() -> list[Document] | None:
        try:
            found = cluster.all_jobs()
        except httpx.HTTPError:
            return None
        return found if all(job["done"] for job in found) else None

    try:
        return wait_until(done, timeout=SETTLE_SECONDS, what="every job is done")
    except AssertionError:
        return cluster.all_jobs()
