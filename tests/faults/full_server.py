"""`python -m tests.faults.full_server STATE_DIR SERVER`: the service while the disk of its `postgres` or `broker` is
full, and after. That disk is small and mounted already."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx

from app.local import stack
from tests.faults.cluster import SETTINGS, Cluster
from tests.faults.conftest import client_of
from tests.small_disk import fill
from tests.specs import ended, finished, train_spec
from tests.waiting import wait_until


def main(state_dir: Path, server: str) -> None:
    (state_dir / "lock").touch()  # a folder with something in it is otherwise refused
    with (
        stack(state_dir=state_dir, workers=1, env=SETTINGS, notify=lambda _: None) as running,
        client_of(running) as http,
    ):
        cluster = Cluster(running, http)
        finished(http, train_spec())
        accepted = list[str]()
        filler = fill(state_dir / server)
        try:
            wait_until(lambda: _shows(http, server, accepted), timeout=60, what="the full disk shows")
        finally:
            filler.unlink()
        wait_until(lambda: _status(http, accepted) == 202, timeout=60, what="jobs are accepted again")
        for job_id in accepted:
            job = ended(http, job_id)
            assert job["status"] == "succeeded", job
            assert cluster.types(job_id).count("running") == job["attempt"]


def _shows(http: httpx.Client, server: str, accepted: list[str]) -> bool:
    """A full database refuses jobs and says so; without a broker they are accepted and wait."""
    status = _status(http, accepted)
    if server == "postgres":
        return status == 503
    assert status == 202
    ready = http.get("/readyz").json()
    return bool((ready["database"], ready["broker"]) == (True, False))


def _status(http: httpx.Client, accepted: list[str]) -> int:
    answer = http.post("/v1/jobs", json=train_spec(labels={f"label{number}": "x" * 128 for number in range(16)}))
    if answer.status_code == 202:
        accepted.append(answer.json()["id"])
    else:
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), answer.text
        assert int(answer.headers["Retry-After"]) > 0
    assert answer.elapsed.total_seconds() < 3
    return answer.status_code


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
