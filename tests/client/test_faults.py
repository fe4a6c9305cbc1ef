"""The client against the real service, through connections that break."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from threading import Thread
from uuid import uuid4

import httpx
import psycopg
import pytest

from app.local import Stack
from secateur_client import Changed, Unreachable
from tests.client.conftest import Connect
from tests.client.proxy import cutting
from tests.specs import Document, submit, train_spec

LOG_ENTRIES = 300


@pytest.fixture
def logged(idle_service: Stack, idle_http: httpx.Client) -> str:
    """A job that was cancelled, with a long log."""
    job_id: str = submit(idle_http, train_spec())["id"]
    idle_http.post(f"/v1/jobs/{job_id}/cancel")
    with psycopg.connect(idle_service.database_url) as connection:
        connection.execute(
            "INSERT INTO job_events (job_id, seq, type, level, attempt, data) "
            "SELECT %s, seq, 'epoch', 'info', 1, '{}' FROM generate_series(3, %s) AS seq",
            [job_id, LOG_ENTRIES],
        )
    return job_id


def test_a_submission_whose_answer_is_lost_makes_one_job(
    idle_service: Stack, idle_http: httpx.Client, connect: Connect
) -> None:
    label = uuid4().hex
    with cutting(idle_service.url, 0, 40) as proxy, connect(proxy.url, idle_service.api_key) as client:
        job = client.submit(train_spec(labels={"test": label}))
        rerun = client.rerun(job)
    listed = idle_http.get("/v1/jobs", params={"label": f"test:{label}"}).json()["items"]
    assert [each["id"] for each in listed] == [rerun.id, job.id]
    assert proxy.said[:2] == [0, 40]


def test_a_log_is_streamed_once_and_to_its_end_over_broken_connections(
    idle_service: Stack, connect: Connect, logged: str
) -> None:
    cuts = [0, 1_000, 20_001, 3_333]
    with cutting(idle_service.url, *cuts) as proxy, connect(proxy.url, idle_service.api_key) as client:
        assert [event.seq for event in client.stream(logged)] == [*range(1, LOG_ENTRIES + 1)]
        assert [event.seq for event in client.stream(logged, after=290)] == [*range(291, LOG_ENTRIES + 1)]
        assert [event.seq for event in client.events(logged)] == [*range(1, LOG_ENTRIES + 1)]
    assert proxy.said[:4] == cuts


def test_who_leaves_a_stream_goes_on_with_others(
    idle_service: Stack, idle_http: httpx.Client, connect: Connect
) -> None:
    job = submit(idle_http, train_spec())
    with cutting(idle_service.url) as proxy, connect(proxy.url, idle_service.api_key) as client:
        events = iter(client.stream(job["id"]))
        assert next(events).seq == 1
        del events
        assert client.get(job["id"]).status == "queued"
    assert len(proxy.said) == 2  # a connection whose answer was left halfway is used for nothing else


def test_waiting_survives_broken_connections_and_sees_the_change_at_once(
    idle_service: Stack, idle_http: httpx.Client, connect: Connect
) -> None:
    job_id = submit(idle_http, train_spec())["id"]
    with cutting(idle_service.url, 0, 100) as proxy, connect(proxy.url, idle_service.api_key) as client:
        states = iter(client.watch(job_id))
        assert next(states).status == "queued"
        cancel = Thread(target=idle_http.post, args=[f"/v1/jobs/{job_id}/cancel"])
        cancel.start()
        assert [state.status for state in states][-1] == "cancelled"
        cancel.join()


def test_a_patch_for_an_older_revision_is_refused(
    idle_service: Stack, idle_http: httpx.Client, connect: Connect
) -> None:
    job_id = submit(idle_http, train_spec(labels={"a": "1", "b": "2"}))["id"]
    with connect(idle_service.url, idle_service.api_key) as client:
        old = client.get(job_id)
        new = client.update(old, {"display_name": "mine", "labels": {"a": None}}, only_if_unchanged=True)
        assert (new.display_name, new.labels) == ("mine", {"b": "2"})
        with pytest.raises(Changed):
            client.update(old, {"display_name": None}, only_if_unchanged=True)
        assert [edge.relation for edge in client.lineage(client.rerun(new)).edges] == ["rerun"]


def test_a_download_is_resumed_over_broken_connections_and_by_another_process(
    service: Stack, http: httpx.Client, trained: Document, connect: Connect, tmp_path: Path
) -> None:
    with connect(service.url, service.api_key) as client:
        (record,) = [each for each in client.artifacts(trained["id"]) if each.name == "dense.safetensors"]
    with cutting(service.url, 0, 2_000, 9_000) as proxy, connect(proxy.url, service.api_key) as client:
        whole = client.download(trained["id"], record, tmp_path / "whole")
    assert sha256(whole.read_bytes()).hexdigest() == record.sha256
    assert proxy.said[3] < record.size - 9_000

    with (
        cutting(service.url, 3_000) as proxy,
        connect(proxy.url, service.api_key, retry_seconds=0) as client,
        pytest.raises(Unreachable),
    ):
        client.download(trained["id"], record, tmp_path / "again")
    assert [path.stat().st_size < 3_000 for path in tmp_path.glob("again*")] == [True]
    with cutting(service.url) as proxy, connect(proxy.url, service.api_key) as client:
        assert client.download(trained["id"], record, tmp_path / "again").read_bytes() == whole.read_bytes()
    assert proxy.said[0] < record.size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "whole"]


def test_the_readme_s_example_runs(service: Stack, root: Path, tmp_path: Path) -> None:
    blocks = (root / "clients" / "python" / "README.md").read_text().split("```python\n")[1:]
    told = {"SECATEUR_URL": service.url, "SECATEUR_API_KEY": service.api_key}
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", block.partition("```")[0]],
            cwd=tmp_path,
            env=os.environ | told,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.safetensors").stat().st_size > 0
