"""What a job process opens once before its first job: torch, threads, the database, data sets."""

from __future__ import annotations

import os

import torch

from app.core import tracing
from app.core.cores import usable_cores
from app.core.settings import Settings
from app.db.session import make_engine, make_sessions
from app.queue import Queue
from app.storage import LocalStore
from worker import identity
from worker.engine import device, memory, pipeline
from worker.engine.data import DatasetStore
from worker.engine.errors import DeviceUnavailable
from worker.engine.export import versions
from worker.engine.lockstep import Together
from worker.presence import Identity, Presence
from worker.runner import Runtime, run_job

# The job itself, its heart and the sign of life: one connection each. Hearts of members that are trained together
# share: each beat takes milliseconds.
POOL_SIZE = 3


class JobProcess:
    """One job at a time, or some members of a sweep at once, in a process of its own."""

    def __init__(self, settings: Settings) -> None:
        """Raises DeviceUnavailable."""
        chosen = device.choose("auto")
        if settings.worker_device == "cuda" and chosen.type != "cuda":
            raise DeviceUnavailable("SECATEUR_WORKER_DEVICE is cuda, and there is no CUDA device here")
        threads = settings.worker_threads or usable_cores()
        torch.set_num_threads(threads)
        self._engine = make_engine(settings.sqlalchemy_url, pool_size=POOL_SIZE)
        sessions = make_sessions(self._engine)
        self._queue = Queue(settings.redis_url.get_secret_value())
        self._traces = tracing.make_provider("secateur-worker")
        owner = identity.owner(os.getpid())
        self._kernels_were_tried = pipeline.warm_up()
        described = Identity(identity.worker_id(), chosen.type, device.name_of(chosen), threads, versions())
        self._presence = Presence(sessions, described)
        self._presence.start()
        self._runtime = Runtime(
            owner=owner,
            sessions=sessions,
            store=LocalStore(settings.artifact_dir),
            datasets=DatasetStore(settings.data_dir, download=settings.dataset_download),
            heartbeat_seconds=settings.heartbeat_seconds,
            lease_seconds=settings.lease_seconds,
            checkpoint_seconds=settings.checkpoint_seconds,
            latency_seconds=settings.latency_seconds,
            max_running=settings.limits.max_running,
            wake=self._queue.wake,
            remind=self._queue.remind,
            working_on=self._presence.working_on,
            tracer=self._traces.get_tracer(__name__),
            together=Together(settings.worker_together, settings.worker_together_on, processes=threads),
        )

    def run(self, job_id: str) -> None:
        try:
            try:
                self._kernels_were_tried = self._kernels_were_tried or pipeline.try_kernels()
                run_job(job_id, self._runtime)
            finally:
                memory.give_back()  # when the job's end is told already
        except Exception:
            self._runtime.end_if_broken()
            raise

    def close(self) -> None:
        self._presence.stop()
        self._queue.close()
        self._engine.dispose()
        tracing.close(self._traces)
