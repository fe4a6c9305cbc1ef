"""What a worker's process has at hand for its jobs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from opentelemetry.trace import NoOpTracer, Tracer
from sqlalchemy.orm import Session, sessionmaker

from app.storage import ArtifactStore
from worker.engine import device
from worker.engine.data import DatasetStore
from worker.engine.lockstep import APART, Together

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runtime:
    """What a worker process has, made once."""

    owner: str
    sessions: sessionmaker[Session]
    store: ArtifactStore
    datasets: DatasetStore
    heartbeat_seconds: float
    lease_seconds: float
    checkpoint_seconds: float
    latency_seconds: float
    max_running: int
    """Of a tenant without a cap of its own."""
    wake: Callable[[str], object]
    """Tells another worker that a job waits."""
    remind: Callable[[str], object]
    """The same, unless there are messages anyway."""
    working_on: Callable[[str | None], object]
    """Tells whom it may concern what this process is at."""
    tracer: Tracer = field(default_factory=NoOpTracer)
    together: Together = APART
    is_broken: Callable[[], bool] = device.is_broken
    """Whether this process can compute no more."""

    def end_if_broken(self) -> None:
        """End this process at once when it can compute no more: it would take one job after another, and fail each. Its
        overseer frees those that it has, and the pool starts a new one."""
        if self.is_broken():
            logger.critical("this process can no longer compute on its GPU, and ends", exc_info=True)
            os._exit(os.EX_SOFTWARE)
