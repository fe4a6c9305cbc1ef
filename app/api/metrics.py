"""What `/metrics` says, in Prometheus' form: of this process its requests, of the service what the database tells."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, Generic, TypeVar, get_args

from sqlalchemy.orm import Session, sessionmaker
from starlette.concurrency import run_in_threadpool

from app.contract.failure import FailureCode
from app.contract.spec import Kind
from app.contract.status import Status
from app.core.version import VERSION
from app.db.metrics import BOUNDS, Total
from app.queue import Queue
from app.services.metrics import Measured, in_status, measure

# Only a process that serves needs it.
if TYPE_CHECKING:
    from prometheus_client.core import Metric

T = TypeVar("T")

PATIENCE_SECONDS = 4.0
"""For the database and the broker; Prometheus itself waits for ten unless told."""

OTHER = "other"
"""A route or a method that is none of ours: what clients make up is no label."""

_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_REQUEST_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, inf)


@dataclass
class _Durations:
    """Of requests that are alike."""

    counts: list[int] = field(default_factory=lambda: [0] * len(_REQUEST_BOUNDS))
    """How many took no longer than each bound, and longer than the one before."""
    seconds: float = 0.0


class Metrics:
    """Counts the requests of this process. On the event loop's thread alone, which is why nothing locks; and without
    the library, whose import the first request would wait for."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, str], _Durations] = defaultdict(_Durations)

    def observe(self, *, method: str, route: str | None, status: int, seconds: float) -> None:
        """A request has ended. `route` is the template that matched, if one did."""
        known = method if method in _METHODS else OTHER
        alike = self._requests[known, route or OTHER, str(status)]
        alike.counts[bisect_left(_REQUEST_BOUNDS, seconds)] += 1
        alike.seconds += seconds

    def exposition(self, measured: Measured | None, *, broker_is_up: bool, accept: str) -> tuple[bytes, str]:
        """The text and its media type, which `accept` chooses."""
        from prometheus_client.exposition import choose_encoder

        encode, media_type = choose_encoder(accept)
        return encode(_Families([*self._of_process(), *_of_service(measured, broker_is_up)])), media_type

    def _of_process(self) -> Iterator[Metric]:
        from prometheus_client import ProcessCollector
        from prometheus_client.core import HistogramMetricFamily

        yield from ProcessCollector(registry=None).collect()
        requests = HistogramMetricFamily(
            "http_request_duration_seconds",
            "Duration of a request, its body and its answer included, so also of waits that the client asked for.",
            labels=["method", "route", "status"],
        )
        for labels, alike in self._requests.items():
            buckets = _cumulative(dict(zip(_REQUEST_BOUNDS, alike.counts, strict=True)))
            requests.add_metric(labels, buckets, alike.seconds)
        yield requests


@dataclass(frozen=True)
class _Families:
    """As an encoder wants them."""

    families: Sequence[Metric]

    def collect(self) -> Sequence[Metric]:
        return self.families


def _of_service(measured: Measured | None, broker_is_up: bool) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    build = GaugeMetricFamily("secateur_build_info", "1; the label is the version.", labels=["version"])
    build.add_metric([VERSION], 1)
    yield build
    yield GaugeMetricFamily("database_up", "Whether the database answered.", value=measured is not None)
    yield GaugeMetricFamily("broker_up", "Whether the broker answered.", value=broker_is_up)
    if measured is not None:
        yield from _of_totals(measured.totals)
        yield from _gauges(measured)


@dataclass(frozen=True)
class _Tallied:
    """A metric of jobs that is a sum of totals."""

    name: str
    help: str
    metric: str
    labels: Mapping[str, str]
    """Each label, and which part of a total it is."""
    known: Sequence[tuple[str, ...]]
    """What has not happened yet is 0, not absent: else its first time would be no increase."""

    def of(self, totals: Sequence[Total]) -> dict[tuple[str, ...], list[Total]]:
        """The totals by their labels."""
        found: dict[tuple[str, ...], list[Total]] = {labels: [] for labels in self.known}
        for total in totals:
            if total.metric == self.metric:
                labels = tuple(getattr(total, part) for part in self.labels.values())
                found.setdefault(labels, []).append(total)
        return found


_KINDS = [(kind,) for kind in get_args(Kind)]
_OUTCOMES = [
    (Status.SUCCEEDED.value, ""),
    (Status.CANCELLED.value, ""),
    *((Status.FAILED.value, code.value) for code in FailureCode),
]
_COUNTERS = (
    _Tallied("jobs_submitted", "Jobs that were accepted.", "submitted", {"kind": "kind"}, _KINDS),
    _Tallied(
        "jobs_finished",
        "Jobs that came to an end; one that is retried does so again.",
        "finished",
        {"kind": "kind", "status": "status", "error_code": "reason"},
        [(*kind, *outcome) for kind in _KINDS for outcome in _OUTCOMES],
    ),
    _Tallied(
        "jobs_requeued",
        "Jobs that went back into the queue: their worker was lost or shut down, or a client asked for a retry.",
        "requeued",
        {"kind": "kind", "reason": "reason"},
        [(*kind, reason) for kind in _KINDS for reason in ("lease_expired", "retry", "worker_shutdown")],
    ),
)
_HISTOGRAMS = (
    _Tallied(
        "job_queue_wait_seconds",
        "From a job's way into the queue to a worker's claim, each time.",
        "queue_wait",
        {"kind": "kind"},
        _KINDS,
    ),
    _Tallied(
        "job_run_seconds", "From the last claim of a job that has ended to its end.", "run", {"kind": "kind"}, _KINDS
    ),
)


def _of_totals(totals: Sequence[Total]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    for each in _COUNTERS:
        counter = CounterMetricFamily(each.name, each.help, labels=[*each.labels])
        for labels, found in each.of(totals).items():
            counter.add_metric(labels, sum(total.count for total in found))
        yield counter
    for each in _HISTOGRAMS:
        histogram = HistogramMetricFamily(each.name, each.help, labels=[*each.labels])
        for labels, found in each.of(totals).items():
            histogram.add_metric(labels, _buckets(found), sum(total.microseconds for total in found) / 1e6)
        yield histogram


def _buckets(totals: Sequence[Total]) -> list[tuple[str, float]]:
    counts = Counter(dict.fromkeys((*BOUNDS, inf), 0))
    for total in totals:
        counts[inf if total.le is None else total.le] += total.count
    return _cumulative(counts)


def _cumulative(counts: Mapping[float, int]) -> list[tuple[str, float]]:
    """Buckets as Prometheus has them."""
    bounds = sorted(counts)
    return [
        ("+Inf" if bound == inf else str(float(bound)), count)
        for bound, count in zip(bounds, accumulate(map(counts.__getitem__, bounds)), strict=True)
    ]


def _gauges(measured: Measured) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    jobs = GaugeMetricFamily("jobs_in_status", "Jobs that there are, by state; purged ones are not.", labels=["status"])
    for status, count in in_status(measured).items():
        jobs.add_metric([status], count)
    yield jobs
    oldest = measured.oldest_queued_seconds
    yield GaugeMetricFamily("oldest_queued_seconds", "How long the oldest queued job waits; 0 without one.", oldest)
    alive = Counter("busy" if each.busy else "idle" for each in measured.heartbeats if each.alive)
    workers = GaugeMetricFamily("workers", "Workers that have been seen within half a minute.", labels=["state"])
    ages = GaugeMetricFamily(
        "worker_heartbeat_age_seconds",
        "Since a worker's last sign of life; one that left, or was not seen for ten minutes, has none.",
        labels=["worker"],
    )
    for state in ("busy", "idle"):
        workers.add_metric([state], alive[state])
    for each in measured.heartbeats:
        ages.add_metric([each.worker_id], each.age_seconds)
    yield from (workers, ages)


class Look(Generic[T]):
    """Asks a question that may take its time, once for all who want to know meanwhile: whoever scrapes may not use up
    connections, least of all when what is asked hangs."""

    def __init__(self, question: Callable[[], T]) -> None:
        self._question = question
        self._task: asyncio.Task[T] | None = None

    async def answer(self) -> T | None:
        """None when it does not come in time."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(run_in_threadpool(self._question))
        done, _ = await asyncio.wait([self._task], timeout=PATIENCE_SECONDS)
        return self._task.result() if done else None


class Watch:
    """What a scrape asks of others."""

    def __init__(self, sessions: sessionmaker[Session], queue: Queue) -> None:
        self.database = Look(lambda: measure(sessions))
        self.broker = Look(queue.is_up)
