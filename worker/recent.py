"""The last lines of a job process's log, which a failed job carries in its `details`."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from app.core.logging import said

KEPT_LINES = 20
LONGEST_LINE = 300


class RecentLog(logging.Handler):
    """Keeps what is logged while it listens, unless it is about another job than this. Messages alone, neither their
    fields nor tracebacks: a client reads it."""

    def __init__(self, job_id: str) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        # A collector that is away is nothing of the client's.
        self.addFilter(lambda record: not record.name.startswith("opentelemetry."))
        # Members that are trained together are at work in one process, by turns.
        self.addFilter(lambda _: said("job_id") in (None, job_id))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}"[:LONGEST_LINE])

    @contextmanager
    def listening(self) -> Iterator[None]:
        root = logging.getLogger()
        root.addHandler(self)
        try:
            yield
        finally:
            root.removeHandler(self)
