"""Celery's entry: `secateur worker` starts it. Settings come from the environment."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.exceptions import WorkerLostError
from celery.signals import setup_logging, task_failure, worker_init, worker_shutdown
from celery.worker import state

from app.core import logging
from app.core.settings import Settings
from app.db.session import make_engine, make_sessions
from app.queue import Queue, make_celery
from app.storage import LocalStore
from app.sweeping import Round, Sweeper
from worker import identity
from worker.overseer import Consumer, Overseer
from worker.tasks import register

# A worker waits for messages on this connection, so it must outlast a quiet queue's polling.
SOCKET_TIMEOUT_SECONDS = 10

MAINTENANCE_SECONDS = 0.25

# The sweeper and the overseer: one connection each.
POOL_SIZE = 2

settings = Settings()
celery = make_celery(settings.redis_url.get_secret_value(), socket_timeout_seconds=SOCKET_TIMEOUT_SECONDS)
# A spawned job process gets a copy of the app without tasks: it has to import this module for itself.
celery.conf.include = [__name__]
register(celery, settings)


class Maintenance(bootsteps.StartStopStep):  # type: ignore[misc]
    """Looks for dead job processes often. The pool itself looks when one's pipe closes, which may be a moment before
    the process can be reaped, and then not again for five seconds."""

    requires = ("celery.worker.components:Pool",)

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        hub.call_repeatedly(MAINTENANCE_SECONDS, worker.pool.maintain_pool)


celery.steps["worker"].add(Maintenance)


@setup_logging.connect(weak=False)
def configure_logging(**_: object) -> None:
    logging.configure(settings.log_level)


@worker_init.connect(weak=False)
def oversee(sender: Any, **_: object) -> None:
    """In the process that receives messages alone: sweep, and look after the job process."""
    identity.christen()
    engine = make_engine(settings.sqlalchemy_url, pool_size=POOL_SIZE)
    sessions = make_sessions(engine)
    queue = Queue(settings.redis_url.get_secret_value())
    store = LocalStore(settings.artifact_dir)
    rounds = Round(sessions, queue, store, settings.max_attempts, settings.limits.max_running)
    sweeper = Sweeper(rounds, interval_seconds=settings.sweep_seconds)
    overseer = Overseer(
        sessions,
        queue,
        sweeper,
        _consumer(sender),
        grace_seconds=settings.cancel_grace_seconds,
        watchdog_seconds=settings.watchdog_seconds,
    )

    @task_failure.connect(weak=False)
    def job_process_lost(exception: BaseException, **_: object) -> None:
        if isinstance(exception, WorkerLostError):
            overseer.wake()

    @worker_shutdown.connect(weak=False)
    def stop(**_: object) -> None:
        overseer.stop()
        sweeper.stop()
        queue.close()
        engine.dispose()

    sweeper.start()
    overseer.start()


def _consumer(worker: Any) -> Consumer:
    def job_processes() -> list[int]:
        try:
            return [pid for pid in worker.pool.info["processes"] if pid is not None]
        except AttributeError:  # while Celery starts there is no pool yet
            return []

    return Consumer(
        job_processes=job_processes,
        is_busy=lambda: bool(state.reserved_requests),
        tasks_taken=lambda: sum(state.total_count.values()),
    )
