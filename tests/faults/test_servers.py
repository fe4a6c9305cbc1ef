"""What happens to the database, and to the disks of both servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.db.migrate import upgrade
from app.local import Server, start_postgres
from app.local.ports import free_port, http_address
from app.services.keys import ensure_first_key
from tests.faults.cluster import FIVE_EPOCHS, SETTINGS, Cluster
from tests.small_disk import run_on_small_disk
from tests.specs import Document, train_spec
from tests.waiting import wait_until

SLOW = pytest.mark.chaos
"""For CI and on request."""


@SLOW
def test_a_database_that_is_killed_and_comes_back_interrupts_no_job(cluster: Cluster, undisturbed: str) -> None:
    job_id = cluster.at_work(FIVE_EPOCHS, epochs=1)
    postgres = cluster.stack.children["postgres"]
    before = postgres.pid
    os.kill(before, signal.SIGKILL)

    def answers() -> Document | None:
        answer = cluster.http.get(f"/v1/jobs/{job_id}")
        job: Document = answer.json()
        return job if answer.status_code == 200 and job["done"] else None

    job = wait_until(answers, timeout=60, what="the job is done")
    assert postgres.pid != before
    assert cluster.model_sha256(job) == undisturbed
    seqs = [event["seq"] for event in cluster.events(job_id)]
    assert seqs == list(range(1, len(seqs) + 1))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Server]:
    """A database that is stopped and started at will, since nobody watches over it."""
    with start_postgres(tmp_path / "postgres", durable=False) as server:
        upgrade(_sqlalchemy(server))
        yield server


def _sqlalchemy(server: Server) -> str:
    return server.url.replace("postgresql://", "postgresql+psycopg://", 1)


@pytest.fixture
def http(database: Server, broker_url: str, tmp_path: Path) -> Iterator[httpx.Client]:
    """An API process on that database."""
    ensure_first_key(_sqlalchemy(database), tmp_path / "key")
    port = free_port("127.0.0.1")
    environment = {**os.environ, **SETTINGS, "SECATEUR_DATABASE_URL": database.url, "SECATEUR_REDIS_URL": broker_url}
    command = [sys.executable, "-m", "app.cli", "api", "--port", str(port)]
    headers = {"Authorization": f"Bearer {(tmp_path / 'key').read_text().strip()}"}
    url = http_address("127.0.0.1", port)
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
        httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as client,
    ):
        try:
            wait_until(lambda: _answers(client), timeout=60, what="the API answers")
            yield client
        finally:
            process.terminate()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def test_while_the_database_is_away_the_api_says_so_and_recovers_by_itself(
    database: Server, http: httpx.Client
) -> None:
    assert http.get("/v1/jobs").status_code == 200
    database.child.stop()
    for request in (http.build_request("GET", "/v1/jobs"), http.build_request("POST", "/v1/jobs", json=train_spec())):
        answer = http.send(request)
        assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (503, "unavailable", True)
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.elapsed.total_seconds() < 3
    assert http.get("/readyz").json() == {
        "status": "unavailable",
        "database": False,
        "migrated": None,
        "broker": True,
    }
    assert http.get("/livez").status_code == 200

    database.child.start()

    wait_until(lambda: http.get("/v1/jobs").status_code == 200, timeout=30, what="the API is well again")
    assert http.post("/v1/jobs", json=train_spec()).status_code == 202


@SLOW
@pytest.mark.host
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("server", "megabytes"), [("postgres", 160), ("broker", 8)])
def test_a_server_whose_disk_is_full_loses_no_job(tmp_path: Path, server: str, megabytes: int) -> None:
    state_dir = tmp_path / "state"
    (state_dir / server).mkdir(parents=True)
    module = "tests.faults.full_server"
    run_on_small_disk(state_dir / server, module, state_dir, server, megabytes=megabytes, seconds=360)
