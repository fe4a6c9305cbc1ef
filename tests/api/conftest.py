from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from app.db.session import session_scope
from app.local import Stack
from app.services.keys import create_key


def client_with(running: Stack, token: str) -> httpx.Client:
    return httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {token}"}, timeout=30, trust_env=False)


def sqlalchemy_url(running: Stack) -> str:
    return running.database_url.replace("postgresql://", "postgresql+psycopg://", 1)


@pytest.fixture(scope="session")
def stranger(idle_service: Stack) -> Iterator[httpx.Client]:
    """Speaks to the service without a worker as another tenant."""
    with session_scope(sqlalchemy_url(idle_service)) as session:
        _, token = create_key(session, tenant="stranger", name="stranger")
    with client_with(idle_service, token) as client:
        yield client
