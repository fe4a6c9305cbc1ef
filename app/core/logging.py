"""Logs as JSON, one line an entry, on standard error. Keys and specs are never logged.

What an entry is about, such as the request or the attempt that it is written in, is said once and stands in each entry.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_about: ContextVar[dict[str, object] | None] = ContextVar("about", default=None)

# Nobody logs these; but a client may send its key as a path, and a driver name its server with the password.
_SECRETS = re.compile(r"(sk_[0-9a-f]{12}_)[\w-]{43}|(whsec_)[\w+/=-]+|(://[^\s:/@\"\\]*:)[^\s/@\"\\]+(?=@)", re.ASCII)

_SIGNS = ("sk_", "whsec_", "://")
"""One of which is in whatever that finds."""


@contextmanager
def about(**fields: object) -> Iterator[dict[str, object]]:
    """Until the end of the block, each entry has these fields and those of `note`, which are what it gives; of a
    thread, when that was started in a copy of this context."""
    token = _about.set(fields)
    try:
        yield fields
    finally:
        _about.reset(token)


def note(**fields: object) -> None:
    """Add to what entries are about, as it becomes known. Also from a thread that runs a part of the request: it shares
    the fields, though not the context."""
    known = _about.get()
    if known is not None:
        known.update(fields)


def said(name: str) -> object:
    """What entries that are written here are about, by this name; None when nothing is said of it."""
    return (_about.get() or {}).get(name)


class _About(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in (_about.get() or {}).items():
            record.__dict__.setdefault(name, value)
        return True


class _Redacting(logging.Formatter):
    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return redacted(self._formatter.format(record))


def redacted(text: str) -> str:
    """Without the secret part of keys, webhook secrets, and passwords in URLs."""
    if not any(sign in text for sign in _SIGNS):  # of nearly all entries; the search takes as long as writing one
        return text
    return _SECRETS.sub(lambda found: "".join(part or "" for part in found.groups()) + "…", text)


def configure(level: str) -> None:
    """Send every logger of this process to one JSON handler. Fields given as `extra=` become fields of the entry."""
    # Here, since who only says what entries are about has no use for it.
    from pythonjsonlogger.core import RESERVED_ATTRS
    from pythonjsonlogger.json import JsonFormatter

    formatter = JsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp="at",
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's copy of its message for terminals
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_About())
    handler.setFormatter(_Redacting(formatter))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # httpx and alembic tell every request and revision at INFO: noise beside our own entries.
    for noisy in ("httpx", "httpcore", "alembic.runtime.plugins"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
