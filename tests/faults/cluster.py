"""A running service whose processes are found by what they do, so that they can be hurt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil
import psycopg
import redis

from app.local import Stack
from app.queue import QUEUE, Queue
from tests.engine.measured import measured
from tests.specs import Document, ended, read, submit, train_spec
from tests.waiting import wait_until
from worker.engine.checkpoint import to_safetensors

LEASE_SECONDS = 4.0
SWEEP_SECONDS = 2.0
SETTINGS = {
    "SECATEUR_HEARTBEAT_SECONDS": "0.2",
    "SECATEUR_LEASE_SECONDS": str(LEASE_SECONDS),
    "SECATEUR_SWEEP_SECONDS": str(SWEEP_SECONDS),
    "SECATEUR_CHECKPOINT_SECONDS": "1",
    "SECATEUR_WATCHDOG_SECONDS": "15",
    "SECATEUR_WORKER_THREADS": "1",
    "SECATEUR_WORKER_TOGETHER": "1",
    "SECATEUR_LATENCY_SECONDS": "0",
}
"""Settings under which a fault and its remedy take seconds, and members of a sweep come to the bits of each alone."""


def training(epochs: int) -> Document:
    """Of which each epoch takes a while."""
    return train_spec(
        model={"architecture": "cnn", "channels": [16, 16, 32], "hidden": 300},
        training={"epochs": epochs},
        regularization={"penalty": "l1"},
    )


FIVE_EPOCHS = training(5)
STEPS = 15
"""Of an epoch of digits."""

ENDLESS = train_spec(training={"epochs": 1000})


def undisturbed_model(spec: Document) -> str:
    """sha256 of the model that a training comes to when nothing happens: it needs no service for that."""
    return _undisturbed_model(json.dumps(spec))


@cache
def _undisturbed_model(spec: str) -> str:
    with TemporaryDirectory() as folder:
        run = measured(json.loads(spec), Path(folder))
    return hashlib.sha256(to_safetensors(run.state)).hexdigest()


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except FileNotFoundError:  # it may go at any moment
        return []


class Cluster:
    """The service and its client."""

    def __init__(self, running: Stack, http: httpx.Client) -> None:
        self.stack, self.http = running, http

    def workers(self) -> Sequence[psutil.Process]:
        """Those that receive messages."""
        children = [child for name, child in self.stack.children.items() if name.startswith("worker")]
        return [psutil.Process(child.pid) for child in children if child.is_running]

    def job_processes(self) -> Sequence[psutil.Process]:
        return [child for worker in self.workers() for child in worker.children() if _runs_jobs(child)]

    def process_of(self, job_id: str) -> psutil.Process:
        """The job process that a running job's last attempt belongs to."""
        started = [event for event in self.events(job_id) if event["type"] == "running"]
        return psutil.Process(int(started[-1]["data"]["worker"].rpartition("/")[2]))

    def worker_of(self, job_id: str) -> psutil.Process:
        parent = self.process_of(job_id).parent()
        assert parent is not None
        return parent

    def events(self, job_id: str) -> Sequence[Document]:
        found: list[Document] = []
        while True:
            page = self.http.get(f"/v1/jobs/{job_id}/events", params={"after": len(found), "limit": 100}).json()
            found += page["items"]
            if page["next_cursor"] is None:
                return found

    def types(self, job_id: str) -> list[str]:
        return [event["type"] for event in self.events(job_id)]

    def checkpoints(self, job_id: str) -> list[Path]:
        """Those that the row names, newest first."""
        with psycopg.connect(self.stack.database_url) as connection:
            row = connection.execute("SELECT checkpoints FROM jobs WHERE id = %s", [job_id]).fetchone()
        assert row is not None
        return [self.folder(job_id) / ".checkpoints" / checkpoint["name"] for checkpoint in row[0]]

    def at_work(self, spec: Document = ENDLESS, *, epochs: int = 2) -> str:
        """A job that has been training for this many epochs."""
        job_id: str = submit(self.http, spec)["id"]
        self.wait_for_epochs(job_id, epochs)
        return job_id

    def wait_for_epochs(self, job_id: str, epochs: int, *, attempt: int = 1, timeout: float = 60) -> None:
        """Until this attempt has told of so many epochs, and a later one can go on from a checkpoint of it, which it
        writes after it has told."""
        wait_until(
            lambda: self._epochs(job_id, attempt) >= epochs and self._has_checkpoint(job_id, attempt),
            timeout=timeout,
            what=f"{epochs} epochs of {attempt}",
        )

    def _epochs(self, job_id: str, attempt: int) -> int:
        return sum(event["type"] == "epoch" and event["attempt"] == attempt for event in self.events(job_id))

    def _has_checkpoint(self, job_id: str, attempt: int) -> bool:
        return any(path.name.startswith(f"{attempt}-") for path in self.checkpoints(job_id))

    def wait_for_training(self, job_id: str, attempt: int, *, timeout: float) -> None:
        def trains() -> bool:
            job = read(self.http, job_id)
            return (job["attempt"], job["phase"]) == (attempt, "training")

        wait_until(trains, timeout=timeout, what=f"attempt {attempt} trains")

    def cancel(self, job_id: str) -> Document:
        self.http.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
        return ended(self.http, job_id, timeout=30)

    def model_sha256(self, job: Document) -> str:
        assert job["status"] == "succeeded", job["error"]
        return hashlib.sha256(self.artifact(job, "model.safetensors")).hexdigest()

    def artifact(self, job: Document, name: str) -> bytes:
        answer = self.http.get(f"{job['links']['artifacts']}/{name}").raise_for_status()
        return answer.content

    def folder(self, job_id: str) -> Path:
        return self.stack.state_dir / "artifacts" / job_id

    def wait_until_tidy(self, job: Document) -> None:
        """Only the folder of the attempt that succeeded is left, or nothing."""
        kept = [str(job["attempt"])] if job["status"] == "succeeded" else []
        folder = self.folder(job["id"])
        wait_until(
            lambda: _names(folder) == kept,
            timeout=10,
            what=f"of {folder} only {kept} is left",
        )

    def all_jobs(self) -> list[Document]:
        """Every job there is, newest first. Raises httpx.HTTPError."""
        found: list[Document] = []
        url = "/v1/jobs?limit=100"
        while url:
            answer = self.http.get(url).raise_for_status()
            found += answer.json()["items"]
            url = answer.links.get("next", {}).get("url", "")
        return found

    def log_of_workers(self) -> str:
        return "".join(path.read_text() for path in sorted(self.stack.state_dir.glob("logs/worker-*.log")))

    @cached_property
    def queue(self) -> Queue:
        return Queue(self.stack.redis_url)

    def operator(self) -> redis.Redis:
        """The broker's own administrator."""
        url = httpx.URL(self.stack.redis_url)
        password = (self.stack.state_dir / "broker" / "operator-password").read_text()
        return redis.Redis(port=url.port or 0, username="operator", password=password)

    def pushes(self) -> int:
        """How many messages the broker was ever given."""
        with self.operator() as operator:
            return int(operator.info("commandstats").get("cmdstat_lpush", {}).get("calls", 0))

    def waiting_messages(self) -> int:
        with redis.Redis.from_url(self.stack.redis_url) as broker:
            return int(broker.llen(QUEUE))

    def wait_until_ready(self, *, workers: int) -> None:
        """Everything answers and each worker has a job process that takes jobs."""

        def ready() -> bool:
            try:
                system = self.http.get("/v1/system").json()
                told = {row["id"].split(":")[1]: row["last_seen_at"] for row in system.get("workers", [])}
                ready = [worker for worker in self.workers() if _is_ready(worker, told.get(str(worker.pid)))]
            except (httpx.HTTPError, psutil.NoSuchProcess):
                return False
            return bool(system.get("broker")) and len(ready) == workers

        wait_until(ready, timeout=60, what="the service is whole")


def _is_ready(worker: psutil.Process, last_seen_at: str | None) -> bool:
    """Whether its job process has told of itself, which it does once it has opened all that a job needs: seconds after
    it began, while the sign of life of one that was killed before it still looks fresh."""
    job_processes = [child for child in worker.children() if _runs_jobs(child)]
    if len(job_processes) != 1 or last_seen_at is None:
        return False
    return datetime.fromisoformat(last_seen_at).timestamp() > job_processes[0].create_time()


def _runs_jobs(process: psutil.Process) -> bool:
    try:
        return any("spawn_main" in word for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def stopped(*processes: psutil.Process) -> Iterator[None]:
    """SIGSTOP until the end of the block, for those that live so long."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()
