"""What a worker's process has at hand for its jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from opentelemetry.trace import NoOpTracer, Tracer
from sqlalchemy.orm import Session, sessionmaker

from app.storage import ArtifactStore
from worker.engine.data import DatasetStore
from worker.engine.lockstep import APART, Together


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
