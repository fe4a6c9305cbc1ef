"""What happens to uploads and imports when processes die."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import httpx
import psutil

from app.sweeping import ORPHANED_SECONDS
from tests.engine.uploads import endless
from tests.faults.cluster import Cluster
from tests.waiting import wait_until


def _converting(cluster: Cluster) -> tuple[str, psutil.Process]:
    """An import that takes for ever, and the process that converts its file."""
    headers = {"Content-Type": "application/octet-stream"}
    job_id = str(cluster.http.post("/v1/checkpoints", content=endless(), headers=headers).json()["id"])
    return job_id, wait_until(lambda: _converter(cluster, job_id), timeout=60, what="the file is being converted")


def _converter(cluster: Cluster, job_id: str) -> psutil.Process | None:
    for process in cluster.job_processes():
        for child in process.children():
            words = child.cmdline()
            if "worker.engine.convert" in words and any(job_id in word for word in words):
                return child
    return None


def _is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_an_import_goes_on_when_its_process_is_killed_and_when_its_worker_goes_and_no_converter_is_left(
    cluster: Cluster,
) -> None:
    job_id, converter = _converting(cluster)

    cluster.process_of(job_id).kill()

    # At once, or when it has imported PyTorch and then looks for its parent.
    wait_until(lambda: _is_gone(converter), timeout=20, what="the converter is gone")
    second = wait_until(lambda: _converter(cluster, job_id), timeout=30, what="another attempt converts")

    cluster.worker_of(job_id).terminate()

    wait_until(lambda: _is_gone(second), timeout=5, what="that converter is gone, too")
    third = wait_until(lambda: _converter(cluster, job_id), timeout=30, what="another worker converts")
    requeued = [event["data"] for event in cluster.events(job_id) if event["type"] == "requeued"]
    assert requeued == [{"reason": "lease_expired"}, {"reason": "worker_shutdown"}]
    assert cluster.cancel(job_id)["status"] == "cancelled"
    wait_until(lambda: _is_gone(third), timeout=5, what="the last converter is gone")
    wait_until(lambda: not _left(cluster), timeout=10, what="the upload of a cancelled job is removed")


def test_what_an_api_that_was_killed_took_in_is_removed_after_a_day(cluster: Cluster) -> None:
    api, url = cluster.stack.children["api"], httpx.URL(cluster.stack.url)
    head = [
        *("POST /v1/checkpoints HTTP/1.1", "Host: x", f"Authorization: Bearer {cluster.stack.api_key}"),
        *("Content-Type: application/octet-stream", "Content-Length: 1000000", "", ""),
    ]
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall("\r\n".join(head).encode() + bytes(1000))
        wait_until(lambda: _left(cluster), timeout=10, what="something has arrived")
        psutil.Process(api.pid).kill()
        cluster.wait_until_ready(workers=2)

    (left,) = _left(cluster)
    then = left.stat().st_mtime - ORPHANED_SECONDS
    os.utime(left, (then, then))

    wait_until(lambda: not _left(cluster), timeout=10, what="it is removed")


def _left(cluster: Cluster) -> list[Path]:
    return list((cluster.stack.state_dir / "artifacts" / ".uploads").glob("*"))
