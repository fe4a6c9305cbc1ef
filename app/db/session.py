"""Connections and sessions. Whoever opens a session commits it, once; nobody else does."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InterfaceError, InternalError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeout)
"""What a database raises that is away, too slow, or has ended the connection. A write may have been committed all the
same, and its acknowledgement lost."""

CONNECT_SECONDS = 5

# What a client that froze or vanished amid a transaction has locked, nobody else can move until the server ends it.
_SERVER_SIDE = {
    "timezone": "UTC",
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "15s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


# A server that vanished from the network without a word is noticed within half a minute.
KEEPALIVE: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}


RESTED_SECONDS = 1.0
"""A connection that has rested for longer is asked whether it still lives, before it is used: asked each time, it would
be a third of what a short request asks the database."""


def make_engine(sqlalchemy_url: str, *, pool_size: int = 5, rested_seconds: float = RESTED_SECONDS) -> Engine:
    """An engine whose connections speak UTC, notice a dead server, are noticed when dead, and never wait for ever."""
    engine = create_engine(
        sqlalchemy_url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=CONNECT_SECONDS,
        hide_parameters=True,  # errors are logged, and a parameter may be a spec
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "options": " ".join(f"-c {name}={value}" for name, value in _SERVER_SIDE.items()),
            "application_name": "secateur",
            **KEEPALIVE,
        },
    )
    _refuse_dead(engine, rested_seconds)
    return engine


def _refuse_dead(engine: Engine, rested_seconds: float) -> None:
    """Let the pool replace a connection, and all of its age, that does not live any more."""
    since, dialect = "rests_since", engine.dialect

    @event.listens_for(engine, "checkin")
    def note_rest(_: object, record: ConnectionPoolEntry) -> None:
        record.info[since] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def refuse_dead(connection: DBAPIConnection, record: ConnectionPoolEntry, _: object) -> None:
        rested = time.monotonic() - record.info.get(since, math.inf)  # a new one has not
        if rested > rested_seconds:
            try:
                dialect.do_ping(connection)
            except dialect.loaded_dbapi.Error as error:
                raise InvalidatePoolError from error


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    return sessionmaker(engine, expire_on_commit=False)


@contextmanager
def session_scope(sqlalchemy_url: str) -> Iterator[Session]:
    """A session of its own connection for a command that needs one: committed at the end, rolled back on an error."""
    engine = make_engine(sqlalchemy_url, pool_size=1)
    try:
        with make_sessions(engine).begin() as session:
            yield session
    finally:
        engine.dispose()
