"""Connections and sessions. Whoever opens a session commits it, once; nobody else does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

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


def make_engine(sqlalchemy_url: str, *, pool_size: int = 5) -> Engine:
    """An engine whose connections speak UTC, notice a dead server, are noticed when dead, and never wait for ever."""
    return create_engine(
        sqlalchemy_url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=CONNECT_SECONDS,
        pool_pre_ping=True,
        hide_parameters=True,  # errors are logged, and a parameter may be a spec
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "options": " ".join(f"-c {name}={value}" for name, value in _SERVER_SIDE.items()),
            "application_name": "secateur",
            **KEEPALIVE,
        },
    )


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
