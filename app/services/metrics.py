"""What the database tells about jobs and workers, for /metrics."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session, sessionmaker

from app.contract.status import Status
from app.db import metrics, workers
from app.db.session import AWAY

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """No tenant's data: counts over all tenants."""

    totals: Sequence[metrics.Total]
    active: Mapping[str, int]
    oldest_queued_seconds: float
    heartbeats: Sequence[workers.Heartbeat]


def measure(sessions: sessionmaker[Session]) -> Measured | None:
    """None when the database does not answer."""
    try:
        with sessions() as session:
            return Measured(
                metrics.totals(session),
                metrics.active(session),
                metrics.oldest_queued_seconds(session),
                workers.heartbeats(session),
            )
    except AWAY as error:
        logger.warning("no metrics of jobs: the database is away", extra={"error": str(error)})
        return None


def in_status(measured: Measured) -> Mapping[str, int]:
    """How many jobs there are in each state. Ends are added up, since a count of them would read a million rows."""
    found = Counter(measured.active)
    for total in measured.totals:
        if total.metric == "finished":
            found[total.status] += total.count
        elif total.metric == "purged":
            found[total.status] -= total.count
        elif total.metric == "requeued" and total.reason == "retry":
            found[Status.FAILED] -= total.count
    return {status: found[status] for status in Status}
