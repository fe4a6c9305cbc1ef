"""The way to the workers: a Celery message that bears a job's id and nothing else.

The row is the job and the message only a wake-up call, so losing or repeating one does no harm, and a broker that is
away is no reason to refuse a job. Whoever gets one takes the job whose turn it is, which may be another than the one
that the message is about. This side knows the task's name, not its function.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

# Celery and the Redis client are an eighth of what importing the API costs, and only who opens a queue needs them.
if TYPE_CHECKING:
    from celery import Celery

RUN_JOB = "secateur.run_job"
QUEUE = "secateur.jobs"

LIFE = "secateur.life"
"""A key that is there for as long as the broker keeps what it was given: gone, the broker is new or was emptied."""

PUBLISH_TIMEOUT_SECONDS = 2

T = TypeVar("T")

logger = logging.getLogger(__name__)


def make_celery(redis_url: str, *, socket_timeout_seconds: float = PUBLISH_TIMEOUT_SECONDS) -> Celery:
    """Celery as both sides configure it. docs/operations.md says why each setting is as it is."""
    from celery import Celery

    celery = Celery("secateur", broker=redis_url, set_as_current=False)
    celery.conf.update(
        task_default_queue=QUEUE,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        # The sweeper requeues a lost job, and counts: the broker would redeliver a poison job for ever.
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_proc_alive_timeout=60,
        worker_pool_start_method="spawn",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": 86_400,
            "socket_timeout": socket_timeout_seconds,
            "socket_connect_timeout": socket_timeout_seconds,
            "max_retries": 0,
        },
    )
    return celery


def worker_command() -> list[str]:
    """What starts a worker process: one job at a time, in a child with a clean interpreter (CUDA needs one)."""
    # Nobody listens to heartbeats, and while the broker is frozen one is sent again and again: the worker would not
    # look up to end.
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
    return [
        sys.executable,
        "-m",
        "celery",
        "--quiet",
        "--app=worker.main:celery",
        "worker",
        f"--queues={QUEUE}",
        "--pool=prefork",
        "--concurrency=1",
        *quiet,
    ]


class Broker(NamedTuple):
    """What a look at the broker told."""

    is_new: bool
    waiting: int
    """Messages that no worker has fetched."""


class Queue:
    """The sending end."""

    def __init__(self, redis_url: str) -> None:
        self._url = redis_url
        self._making = threading.Lock()
        self._made: Celery | None = None

    @property
    def _celery(self) -> Celery:
        """Made when there is something to send: a process that starts need not wait for it."""
        with self._making:
            if self._made is None:
                self._made = make_celery(self._url)
            return self._made

    def wake(self, job_id: str) -> bool:
        """Tell a worker that a job waits. False, within seconds, when the broker is away: the sweeper sends again."""
        return self.wake_all([job_id])

    def wake_all(self, job_ids: Sequence[str]) -> bool:
        """The same for several jobs, all in one go; of some a worker may have been told also when this is False."""
        from kombu.exceptions import BatchPublishError, OperationalError
        from redis.exceptions import RedisError

        try:
            with self._celery.producer_or_acquire() as producer, producer.batch():
                for job_id in job_ids:
                    self._celery.send_task(RUN_JOB, args=[job_id], queue=QUEUE, retry=False, producer=producer)
        except (BatchPublishError, OperationalError, OSError, RedisError) as error:
            told = {"job_id": job_ids[0], "jobs": len(job_ids), "error": str(error)}
            logger.warning("broker is away, the sweeper will send the message", extra=told)
            return False
        return True

    def remind(self, job_id: str) -> None:
        """Tell a worker that a job waits, unless there are messages that will lead one to it anyway."""
        broker = self.look()
        if broker is not None and not broker.waiting:
            self.wake(job_id)

    def is_up(self) -> bool:
        """Whether the broker answers now."""
        return self.look() is not None

    def look(self) -> Broker | None:
        """None, within seconds, when the broker does not answer."""
        return self._ask(lambda client: Broker(not client.exists(LIFE), int(client.llen(QUEUE))))

    def mark(self) -> None:
        """This broker has been given all that is queued."""
        self._ask(lambda client: client.set(LIFE, "1", nx=True))

    def _ask(self, question: Callable[[Any], T]) -> T | None:
        try:
            with self._celery.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=PUBLISH_TIMEOUT_SECONDS)
                return question(connection.default_channel.client)
        except Exception as error:  # the transport raises several families; for this question they mean one thing
            logger.warning("broker does not answer", extra={"error": str(error)})
            return None

    def close(self) -> None:
        if self._made is not None:
            self._made.close()


MOST_UNSENT = 10_000

REST_SECONDS = 0.02
"""Between two sendings: under load, messages go several at a time, at a fraction of what each takes alone."""

SENDS_LAST_SECONDS = 2 * PUBLISH_TIMEOUT_SECONDS
"""What the end of a process may wait for the last messages."""


class Waker:
    """Sends messages on a thread of its own, from `start` to `stop`: whoever has a job to tell of does not wait for the
    broker. What is not sent, because that is away or there is too much of it, the sweeper sends."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._unsent: list[str] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="waker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self, job_ids: Sequence[str]) -> None:
        """Tell workers soon that these jobs wait."""
        with self._changed:
            self._unsent.extend(job_ids[: MOST_UNSENT - len(self._unsent)])
            self._changed.notify()

    def stop(self) -> None:
        """Send what there is, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(SENDS_LAST_SECONDS)

    def _run(self) -> None:
        while job_ids := self._next():
            try:
                self._queue.wake_all(job_ids)
            except Exception:  # a waker that died unseen would make every job wait for the sweeper
                logger.exception("messages not sent, the sweeper will send them")
            self._rest()

    def _next(self) -> Sequence[str]:
        """What there is to send, when there is something; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._unsent or self._stopping)
            taken, self._unsent = self._unsent, []
            return taken

    def _rest(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, REST_SECONDS)
