"""Logs as JSON, one line an entry, on standard error. Keys and specs are never logged."""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter


def configure(level: str) -> None:
    """Send every logger of this process to one JSON handler. Fields given as `extra=` become fields of the entry."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger"},
            timestamp="at",
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's copy of its message for terminals
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # httpx and alembic tell every request and revision at INFO: noise beside our own entries.
    for noisy in ("httpx", "httpcore", "alembic.runtime.plugins"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
