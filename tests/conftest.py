"""Servers for the tests: the real ones, started once a run, each test with a database of its own where it wants one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest
from psycopg import sql
from sqlalchemy.orm import Session, sessionmaker

from app.db.migrate import upgrade
from app.db.session import make_engine, make_sessions
from app.local import Stack, stack, start_broker, start_postgres
from tests.collector import Collector, collector
from tests.specs import Document, finished, train_spec

# Whatever the developer's shell says about a server of theirs is not about ours.
for _name in [name for name in os.environ if name.startswith(("SECATEUR_", "OTEL_"))]:
    del os.environ[_name]
# One thread each: two torch processes with two threads each on two cores are ten times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"

QUICK: Mapping[str, str] = {
    "SECATEUR_HEARTBEAT_SECONDS": "0.1",
    "SECATEUR_LEASE_SECONDS": "10",
    "SECATEUR_SWEEP_SECONDS": "1",
    "SECATEUR_WORKER_THREADS": "1",
    "SECATEUR_WEBHOOK_ALLOW_PRIVATE": "true",
    "SECATEUR_MAX_QUEUED_JOBS": "none",
    "SECATEUR_REQUESTS_PER_MINUTE": "60000",
}
"""Settings under which nobody waits long, and no test is refused what it is not about."""


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real PostgreSQL whose database is empty."""
    with start_postgres(tmp_path_factory.mktemp("postgres") / "state", durable=False) as server:
        yield server.url


@pytest.fixture(scope="session")
def template(postgres: str) -> str:
    """Name of a database with the current schema, to copy from."""
    upgrade(_sqlalchemy(_create(postgres, "template")))
    return "template"


@pytest.fixture
def database_url(postgres: str, template: str) -> Iterator[str]:
    """A database of the test's own, migrated, for SQLAlchemy."""
    name = f"test_{uuid4().hex}"
    yield _sqlalchemy(_create(postgres, name, template))
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def sessions(database_url: str) -> Iterator[sessionmaker[Session]]:
    """Sessions on the test's own database."""
    engine = make_engine(database_url)
    yield make_sessions(engine)
    engine.dispose()


@pytest.fixture(scope="session")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real broker."""
    with start_broker(tmp_path_factory.mktemp("broker") / "state") as server:
        yield server.url


@pytest.fixture(scope="session")
def traces() -> Iterator[Collector]:
    """What the service tells of its requests and attempts."""
    with collector() as running:
        yield running


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, mnist_dir: Path | None, traces: Collector) -> Iterator[Stack]:
    """The whole service with one worker, in a folder whose name has a space."""
    state = tmp_path_factory.mktemp("service") / "state of it"
    env = {**QUICK, "OTEL_EXPORTER_OTLP_ENDPOINT": traces.url, "OTEL_BSP_SCHEDULE_DELAY": "500"}
    with stack(state_dir=state, workers=1, durable=False, env=env, data_dir=mnist_dir) as running:
        yield running


@pytest.fixture(scope="session")
def idle_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The service without a worker: what is queued stays queued."""
    state = tmp_path_factory.mktemp("idle") / "state of it"
    with stack(state_dir=state, workers=0, durable=False, env=QUICK) as running:
        yield running


@pytest.fixture(scope="session")
def http(service: Stack) -> Iterator[httpx.Client]:
    """Speaks to the service with its first key."""
    with _client(service) as client:
        yield client


@pytest.fixture(scope="session")
def idle_http(idle_service: Stack) -> Iterator[httpx.Client]:
    """Speaks to the service without a worker."""
    with _client(idle_service) as client:
        yield client


@pytest.fixture(scope="session")
def trained(http: httpx.Client) -> Document:
    """A small train job that has succeeded."""
    return finished(http, train_spec(display_name="trained", labels={"team": "a"}))


@pytest.fixture(scope="session")
def mnist_dir() -> Path | None:
    """The folder with the real MNIST files, when TEST_DATA_DIR names one."""
    folder = os.environ.get("TEST_DATA_DIR")
    return Path(folder).absolute() if folder else None


def pytest_report_header() -> str:
    return f"data set of the experiment: {'mnist' if os.environ.get('TEST_DATA_DIR') else 'digits'}"


def _client(running: Stack) -> httpx.Client:
    headers = {"Authorization": f"Bearer {running.api_key}"}
    return httpx.Client(base_url=running.url, headers=headers, timeout=30, trust_env=False)


def _create(server_url: str, name: str, template: str = "template0") -> str:
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(statement)
    return server_url.replace("/secateur?", f"/{name}?", 1)


def _sqlalchemy(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)
