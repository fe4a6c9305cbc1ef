"""Requests a second, start and memory of the API's process, against what a plain FastAPI application takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from app.local import Stack, stack
from app.local.ports import usable_port
from benchmarks.bench.load import Request, seconds_for
from benchmarks.bench.measuring import Setting, in_turn
from benchmarks.bench.rows import Row

CONNECTIONS = 8
HOST = "127.0.0.1"
UNLIMITED = dict.fromkeys(("SECATEUR_REQUESTS_PER_MINUTE", "SECATEUR_MAX_QUEUED_JOBS"), "none")
SPEC: dict[str, Any] = {"kind": "train", "dataset": {"name": "digits"}}

_TEXT = f"""One API process, {CONNECTIONS} kept connections, the clients on the same cores. Each connection reads
another job at each request, so that nothing is asked once for several. The plain application is FastAPI on the same
server with SQLAlchemy on the same PostgreSQL: a row by its key, or an insert, without a key, a model, limits or a log.
No worker runs. Start: from the process's begin to its first answer; memory: what of it is in RAM then, shared libraries
too."""


def measure(setting: Setting) -> tuple[Sequence[Row], str]:
    with (
        tempfile.TemporaryDirectory(prefix="serving-") as folder,
        stack(state_dir=Path(folder) / "state", workers=0, env=UNLIMITED) as service,
        _plain(service) as plain,
    ):
        return [*_requests(setting, service, plain), *_starts(setting, service)], _TEXT


@contextmanager
def _process(arguments: Sequence[str], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, *arguments], env=environment, stderr=subprocess.DEVNULL)  # noqa: S603 - our own
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def _until_it_answers(url: str) -> None:
    deadline = time.monotonic() + 60
    with httpx.Client(trust_env=False) as http:
        while True:
            try:
                http.get(url).raise_for_status()
            except httpx.ConnectError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return


@contextmanager
def _plain(service: Stack) -> Iterator[str]:
    port = usable_port(HOST, 0)
    database = service.database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    with _process(["-m", "benchmarks.bench.plain", str(port), database]):
        _until_it_answers(f"http://{HOST}:{port}/docs")
        yield f"http://{HOST}:{port}"


def _requests(setting: Setting, service: Stack, plain: str) -> list[Row]:
    count = setting.work(2_000, 200)
    body = json.dumps(SPEC).encode()
    headers = {"Authorization": f"Bearer {service.api_key}"}
    with httpx.Client(base_url=service.url, headers=headers, trust_env=False) as http:
        ids = [http.post("/v1/jobs", json=SPEC).raise_for_status().json()["id"] for _ in range(4 * CONNECTIONS)]
        for _ in range(len(ids)):
            httpx.post(f"{plain}/jobs", json=SPEC, trust_env=False).raise_for_status()
        for job_id in ids:  # a place in the queue would be more to ask for than a row
            http.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    reads = [Request("GET", f"/v1/jobs/{ids[number % len(ids)]}") for number in range(count)]
    plain_reads = [Request("GET", f"/jobs/{number % len(ids) + 1}") for number in range(count)]

    def rate(url: str, key: str | None, requests: Sequence[Request], status: int) -> float:
        return count / seconds_for(url, key, requests, connections=CONNECTIONS, status=status)

    rounds = setting.rounds(5)
    read, plain_read, submitted, inserted = in_turn(
        rounds,
        lambda: rate(service.url, service.api_key, reads, 200),
        lambda: rate(plain, None, plain_reads, 200),
        lambda: rate(service.url, service.api_key, [Request("POST", "/v1/jobs", body)] * count, 202),
        lambda: rate(plain, None, [Request("POST", "/jobs", body)] * count, 202),
    )
    return [
        Row(
            what="GET /v1/jobs/{id}",
            against="a plain application that reads a row",
            kind="rate",
            unit="requests/s",
            ours=read,
            plain=plain_read,
            must=0.5,
            aim=0.8,
        ),
        Row(
            what="POST /v1/jobs",
            against="a plain application that inserts a row",
            kind="rate",
            unit="requests/s",
            ours=submitted,
            plain=inserted,
            must=0.3,
            aim=0.6,
        ),
    ]


def _starts(setting: Setting, service: Stack) -> list[Row]:
    ours: list[tuple[float, float]] = []
    plain: list[tuple[float, float]] = []
    for _ in range(1 + setting.rounds(7)):
        ours.append(_start(["-P", "-m", "app.cli", "api", "--host", HOST, "--port"], dict(service.environment)))
        plain.append(_start(["-m", "benchmarks.bench.hello"]))
    against = "FastAPI that says hello"
    # The first of each may have had to compile.
    (times, sizes), (plain_times, plain_sizes) = zip(*ours[1:], strict=True), zip(*plain[1:], strict=True)
    return [
        Row(
            what="start of the API",
            against=against,
            kind="cost",
            ours=times,
            plain=plain_times,
            must=2.5,
            aim=1.5,
        ),
        Row(
            what="memory of the API",
            against=against,
            kind="cost",
            unit="MB",
            ours=sizes,
            plain=plain_sizes,
            must=2.5,
            aim=1.5,
        ),
    ]


def _start(arguments: Sequence[str], environment: dict[str, str] | None = None) -> tuple[float, float]:
    """Seconds to the first answer, and megabytes then."""
    port, environment = usable_port(HOST, 0), dict(environment or os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installation has its bytecode
    started = time.perf_counter()
    with _process([*arguments, str(port)], environment) as process:
        _until_it_answers(f"http://{HOST}:{port}/livez")
        return time.perf_counter() - started, psutil.Process(process.pid).memory_info().rss / 1e6
