"""The worker as it is run: two processes, of which one never imports torch."""

from __future__ import annotations

import base64
import json

import httpx
import psutil
import pytest
import redis
import torch

from app.core.settings import Settings
from app.local import Stack
from app.queue import QUEUE
from tests.specs import Document, finished, submit, train_spec
from tests.waiting import wait_until
from worker.engine.errors import DeviceUnavailable
from worker.process import JobProcess


def _uses_torch(process: psutil.Process) -> bool:
    return any("libtorch" in mapped.path for mapped in process.memory_maps())


def test_only_the_process_that_runs_jobs_imports_torch(service: Stack, trained: Document) -> None:
    assert trained["done"]
    worker = psutil.Process(service.children["worker-1"].pid)

    assert not _uses_torch(worker)
    assert [child for child in worker.children(recursive=True) if _uses_torch(child)]


def test_the_api_never_loads_torch(service: Stack, trained: Document) -> None:
    assert trained["done"]
    api = psutil.Process(service.children["api"].pid)

    assert not [process for process in (api, *api.children(recursive=True)) if _uses_torch(process)]


def test_a_message_bears_an_id_and_nothing_else(idle_service: Stack, idle_http: httpx.Client) -> None:
    job = submit(idle_http, train_spec(display_name="of no concern"))

    with redis.Redis.from_url(idle_service.redis_url) as broker:
        message = wait_until(lambda: _message_about(broker, job["id"]), timeout=10, what="the message is there")

    arguments, named, _ = json.loads(base64.b64decode(message["body"]))
    assert (arguments, named) == ([job["id"]], {})
    assert "of no concern" not in json.dumps(message)
    assert idle_service.api_key not in json.dumps(message)


def test_no_log_tells_a_secret_or_a_spec(service: Stack, http: httpx.Client) -> None:
    finished(http, train_spec(display_name="of no concern", labels={"quite": "private"}))
    secrets = [service.api_key, service.api_key.split("_")[2], "of no concern", "private"]
    secrets += [(service.state_dir / "broker" / name).read_text() for name in ("password", "operator-password")]

    told = "".join(path.read_text() for path in (service.state_dir / "logs").glob("*.log"))

    assert "attempt ended" in told
    assert [secret for secret in secrets if secret in told] == []


def _message_about(broker: redis.Redis, job_id: str) -> Document | None:
    messages: list[Document] = [json.loads(message) for message in broker.lrange(QUEUE, 0, -1)]
    return next((message for message in messages if job_id in message["headers"]["argsrepr"]), None)


def _is_about(job: Document, entry: Document) -> bool:
    return entry.get("job_id") == job["id"] and "attempt" in entry


def test_a_workers_log_tells_of_each_attempt(service: Stack, trained: Document) -> None:
    log = (service.state_dir / "logs" / "worker-1.log").read_text()

    entries = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    told = [(entry["message"], entry["attempt"]) for entry in entries if _is_about(trained, entry)]
    assert told == [("attempt started", 1), ("attempt ended", 1)]
    assert "-- *****" not in log


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_a_worker_that_needs_a_gpu_does_not_work_without() -> None:
    url, broker = "postgresql://nowhere/x", "redis://127.0.0.1:1/0"
    with pytest.raises(DeviceUnavailable, match="SECATEUR_WORKER_DEVICE is cuda"):
        JobProcess(Settings(database_url=url, redis_url=broker, worker_device="cuda"))
