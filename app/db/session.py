"""Connections and sessions. Whoever opens a session commits it, once; nobody else does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 30


def make_engine(sqlalchemy_url: str, *, pool_size: int = 5) -> Engine:
    """An engine whose connections speak UTC, notice a dead server, and never wait for ever."""
    return create_engine(
        sqlalchemy_url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=CONNECT_SECONDS,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "options": f"-c timezone=UTC -c statement_timeout={STATEMENT_SECONDS}s -c lock_timeout=10s",
            "application_name": "secateur",
            # A server that vanished from the network without a word is noticed within half a minute.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 25_000,
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
