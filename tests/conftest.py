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
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from app.db.migrate import upgrade
from app.db.models import Base
from app.db.session import make_engine, make_sessions
from app.local import Stack, stack, start_broker, start_postgres
from tests.collector import Collector, collector
from tests.speaking import client_of
from tests.specs import Document, finished, train_spec
from tests.waiting import wait_until

# Whatever the developer's shell says about a server of theirs is not about ours.
for _name in [name for name in os.environ if name.startswith(("SECATEUR_", "OTEL_"))]:
    del os.environ[_name]
# One thread each: two torch processes with two threads each on two cores are ten times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
# Where a test asks for two nevertheless, they sleep while they wait for each other: other tests want the core.
os.environ["OMP_WAIT_POLICY"] = "passive"

QUICK: Mapping[str, str] = {
    "SECATEUR_HEARTBEAT_SECONDS": "0.1",
    "SECATEUR_LEASE_SECONDS": "10",
    "SECATEUR_SWEEP_SECONDS": "3",  # each costs as much as a dozen requests, in every process of every service
    "SECATEUR_WORKER_THREADS": "1",
    "SECATEUR_WEBHOOK_ALLOW_PRIVATE": "true",
    "SECATEUR_MAX_QUEUED_JOBS": "none",
    "SECATEUR_REQUESTS_PER_MINUTE": "60000",
    "SECATEUR_LATENCY_SECONDS": "0",  # of so small networks it takes as long to measure as their training
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


@pytest.fixture(scope="session")
def spare() -> list[str]:
    """Databases that tests have left, with nothing in them: to empty one takes a hundredth of what a new one does."""
    return []


@pytest.fixture
def database_url(postgres: str, template: str, spare: list[str]) -> Iterator[str]:
    """A database of the test's own, migrated, for SQLAlchemy."""
    url = spare.pop() if spare else _create(postgres, f"test_{uuid4().hex}", template)
    yield _sqlalchemy(url)
    if _is_left_empty(url):
        spare.append(url)
    else:
        _drop(postgres, url)


def _is_left_empty(url: str) -> bool:
    """Empty it, unless somebody is still connected. The server may notice a moment after who has left."""
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    with psycopg.connect(url, autocommit=True) as connection:
        try:
            wait_until(lambda: connection.execute(others).fetchone() == (0,), timeout=1, what="all have left")
        except AssertionError:
            return False
        # Without triggers, which would tell of the rows that go, and in any order.
        statements: list[sql.Composable] = [sql.SQL("SET LOCAL session_replication_role = replica")]
        statements += [sql.SQL("DELETE FROM {}").format(sql.Identifier(name)) for name in Base.metadata.tables]
        connection.execute(sql.SQL("; ").join(statements))  # one transaction, as all that is sent at once
    return True


def _drop(server_url: str, url: str) -> None:
    statement = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(str(conninfo_to_dict(url)["dbname"])))
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(statement)


@pytest.fixture(scope="session")
def engines() -> dict[str, Engine]:
    """By database. An engine keeps the statements that it has compiled, which takes longer than to send them."""
    return {}


@pytest.fixture
def sessions(database_url: str, engines: dict[str, Engine]) -> Iterator[sessionmaker[Session]]:
    """Sessions on the test's own database."""
    if database_url not in engines:
        engines[database_url] = make_engine(database_url)
    yield make_sessions(engines[database_url])
    engines[database_url].dispose()  # of its connections


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
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": traces.url, "OTEL_BSP_SCHEDULE_DELAY": "500"}
    # Of the thousands of requests, only those whose client traces them: two spans are read, the others take their time.
    env = {**QUICK, **told, "OTEL_TRACES_SAMPLER": "parentbased_always_off"}
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
    with client_of(service.url, service.api_key) as client:
        yield client


@pytest.fixture(scope="session")
def idle_http(idle_service: Stack) -> Iterator[httpx.Client]:
    """Speaks to the service without a worker."""
    with client_of(idle_service.url, idle_service.api_key) as client:
        yield client


@pytest.fixture(scope="session")
def trained(http: httpx.Client) -> Document:
    """A small train job that has succeeded, with all files that one can have."""
    return finished(
        http, train_spec(display_name="trained", labels={"team": "a"}, histogram={"tensors": ["fc2.weight"]})
    )


@pytest.fixture(scope="session")
def mnist_dir() -> Path | None:
    """The folder with the real MNIST files, when TEST_DATA_DIR names one."""
    folder = os.environ.get("TEST_DATA_DIR")
    return Path(folder).absolute() if folder else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With `--dist loadfile`."""
    if config.getoption("dist") != "loadfile":
        return None
    from tests.spreading import BySharing

    return BySharing(config, log)


def pytest_report_header() -> str:
    return f"data set of the experiment: {'mnist' if os.environ.get('TEST_DATA_DIR') else 'digits'}"


def _create(server_url: str, name: str, template: str = "template0") -> str:
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(statement)
    return server_url.replace("/secateur?", f"/{name}?", 1)


def _sqlalchemy(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)
