from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from uuid import uuid4

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from app.contract.checkpoint import tensors_of
from app.contract.spec import ModelSpec
from app.db.session import session_scope
from app.local import Stack
from app.services.keys import create_key
from tests.speaking import client_of
from tests.specs import Document, ended, finished, prune_spec
from tests.waiting import wait_until


def client_with(running: Stack, token: str) -> httpx.Client:
    return client_of(running.url, token)


def sqlalchemy_url(running: Stack) -> str:
    return running.database_url.replace("postgresql://", "postgresql+psycopg://", 1)


@pytest.fixture(scope="session")
def stranger(idle_service: Stack) -> Iterator[httpx.Client]:
    """Speaks to the service without a worker as another tenant."""
    with session_scope(sqlalchemy_url(idle_service)) as session:
        _, token = create_key(session, tenant="stranger", name="stranger")
    with client_with(idle_service, token) as client:
        yield client


@pytest.fixture
def newcomer(idle_service: Stack) -> Iterator[httpx.Client]:
    """Speaks for a tenant without jobs, to the service without a worker."""
    with session_scope(sqlalchemy_url(idle_service)) as session:
        _, token = create_key(session, tenant=uuid4().hex, name="newcomer")
    with client_with(idle_service, token) as client:
        yield client


@pytest.fixture(scope="session")
def pruned(http: httpx.Client, trained: Document) -> Document:
    """A pruning of `trained` that has succeeded."""
    return finished(http, prune_spec(trained["id"]))


def published(http: httpx.Client, model: ModelSpec) -> Document:
    """A job that has succeeded and published a network of these widths: an import, for which nothing was trained."""
    types = {"F32": np.float32, "I64": np.int64}
    state = {name: np.ones(facts.shape, types[facts.dtype]) for name, facts in tensors_of(model).items()}
    headers = {"Content-Type": "application/octet-stream"}
    job = ended(http, http.post("/v1/checkpoints", content=save(state), headers=headers).json()["id"])
    assert job["status"] == "succeeded", job["error"]
    return job


def restart_api(running: Stack, http: httpx.Client) -> None:
    """Kill the API's process, and wait until the one that takes its place answers."""
    before = running.children["api"].pid
    os.kill(before, signal.SIGKILL)
    wait_for_another_api(running, http, before)


def wait_for_another_api(running: Stack, http: httpx.Client, before: int) -> None:
    """Until a process answers that has taken the place of `before`."""

    def answers() -> bool:
        try:
            return running.children["api"].pid != before and http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    wait_until(answers, timeout=60, what="another API process answers")
