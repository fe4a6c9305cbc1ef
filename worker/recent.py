"""The last lines of a job process's log, which a failed job carries in its `details`."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

KEPT_LINES = 20
LONGEST_LINE = 300


class RecentLog(logging.Handler):
    """Keeps what is logged while it listens. Messages alone, neither their fields nor tracebacks: a client reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        # A collector that is away is nothing of the client's.
        self.addFilter(lambda record: not record.name.startswith("opentelemetry."))

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
