"""What a job costs beside the engine's work, and what more workers bring."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from app.core.cores import usable_cores
from app.local import Stack, stack
from benchmarks.bench.measuring import Setting, in_turn, seconds
from benchmarks.bench.rows import Row
from benchmarks.bench.serving import UNLIMITED

QUEUE, WORKERS = 200, 8
TRAIN: dict[str, Any] = {
    "kind": "train",
    "dataset": {"name": "digits"},
    "model": {"channels": [4, 4, 8], "hidden": 16},
    "training": {"epochs": 1},
    "histogram": {"tensors": []},
}

_OVERHEAD = """One worker with one thread, warm and idle; a small training on digits, one after another. The overhead is
what the client's clock has from sending the job to knowing its end by a long poll, less `engine_seconds`; the start is
`started_at` less `created_at`, by the database's clock."""


def overhead(setting: Setting) -> tuple[Sequence[Row], str]:
    beside, starts = [], []
    with service(workers=1) as (http, _):
        done(http, submitted(http, TRAIN))  # warm
        for _ in range(setting.work(40, 5)):
            began = time.perf_counter()
            job = done(http, submitted(http, TRAIN))
            beside.append(time.perf_counter() - began - job["result"]["engine_seconds"])
            starts.append(_moment(job, "started_at") - _moment(job, "created_at"))
    return [
        Row(what="a job's overhead", kind="value", ours=tuple(beside), must=0.5, aim=0.15),
        Row(what="from POST to running, idle worker", kind="value", ours=tuple(starts), must=0.15, aim=0.05),
    ], _OVERHEAD


def workers(setting: Setting) -> tuple[Sequence[Row], str]:
    """Jobs without a training: prunings of one checkpoint."""
    jobs, many = setting.work(QUEUE, 6), setting.work(WORKERS, 2)
    alone, together = [], []
    for _ in range(setting.rounds(1)):  # of minutes each
        alone.append(_seconds_for_queue(jobs, workers=1))
        together.append(_seconds_for_queue(jobs, workers=many))
    cores = usable_cores()
    text = (
        f"{jobs} prune jobs without fine-tuning on digits, from the first one's start to the last one's end, each "
        f"worker with one thread on {cores} cores; at each end all jobs are looked at: every one has succeeded, in its "
        "first attempt and once."
    )
    return [
        Row(
            what=f"{many} workers on a queue of {jobs} jobs",
            against="one worker",
            kind="speed-up",
            ours=tuple(together),
            plain=tuple(alone),
            aim=cores,
        )
    ], text


def sweep(setting: Setting) -> tuple[Sequence[Row], str]:
    """On a CPU its members are jobs of their own."""
    count, epochs = setting.work(16, 4), setting.work(10, 1)
    base = TRAIN | {"training": {"epochs": epochs}, "pruning": {"method": "magnitude", "sparsity": 0.9}}
    rows = []
    for many in sorted({1, usable_cores()}):
        with service(workers=many) as (http, _):
            _until_all_are_there(http, many)
            for _ in range(many):
                done(http, submitted(http, TRAIN))  # warm
            ours, plain = in_turn(
                setting.rounds(3),
                seconds(lambda http=http: done(http, submitted(http, _swept(base, count)))),  # type: ignore[misc]
                seconds(lambda http=http: _one_after_another(http, base, count)),  # type: ignore[misc]
            )
        told = "one worker" if many == 1 else f"{many} workers"
        row = Row(
            what=f"a sweep of {count} on a CPU, {told}",
            against=f"{count} jobs one after another",
            kind="speed-up",
            ours=ours,
            plain=plain,
            must=1.0,
        )
        rows.append(row)
    text = (
        f"{count} seeds of a training of {epochs} epochs on digits, pruned; each worker with one thread. Until the "
        "last job's end is known, and of the sweep until its frontier is there, by the client's clock."
    )
    return rows, text


def _swept(base: dict[str, Any], count: int) -> dict[str, Any]:
    return {"kind": "sweep", "base": base, "grid": {"seeds": list(range(count))}}


def _one_after_another(http: httpx.Client, base: dict[str, Any], count: int) -> None:
    for seed in range(count):
        done(http, submitted(http, base | {"training": {**base["training"], "seed": seed}}))


def _seconds_for_queue(jobs: int, *, workers: int) -> float:
    with service(workers=workers) as (http, _):
        source = done(http, submitted(http, TRAIN))
        _until_all_are_there(http, workers)
        spec = {
            "kind": "prune",
            "source": {"job_id": source["id"]},
            "pruning": {"method": "magnitude", "sparsity": 0.9},
        }
        ids = [submitted(http, spec) for _ in range(jobs)]
        ended = [done(http, job_id) for job_id in ids]
    assert len({job["id"] for job in ended}) == jobs
    for job in ended:
        assert (job["status"], job["attempt"]) == ("succeeded", 1), job
    return max(_moment(job, "finished_at") for job in ended) - min(_moment(job, "started_at") for job in ended)


def _until_all_are_there(http: httpx.Client, count: int) -> None:
    until = time.monotonic() + 120
    while len([each for each in http.get("/v1/system").json()["workers"] if each["alive"]]) < count:
        if time.monotonic() > until:
            raise RuntimeError(f"{count} workers are not there within two minutes")
        time.sleep(0.1)


@contextmanager
def service(*, workers: int, data_dir: Path | None = None) -> Iterator[tuple[httpx.Client, Stack]]:
    """A client, and the service that it is of, with so many workers, each with a thread."""
    environment = {**UNLIMITED, "SECATEUR_WORKER_THREADS": "1"}
    with (
        tempfile.TemporaryDirectory(prefix="running-") as folder,
        stack(
            state_dir=Path(folder) / "state", workers=workers, data_dir=data_dir, env=environment, notify=print
        ) as running,
        httpx.Client(
            base_url=running.url,
            headers={"Authorization": f"Bearer {running.api_key}"},
            trust_env=False,
            timeout=60,
        ) as http,
    ):
        yield http, running


def submitted(http: httpx.Client, spec: dict[str, Any]) -> str:
    job_id: str = http.post("/v1/jobs", json=spec).raise_for_status().json()["id"]
    return job_id


def done(http: httpx.Client, job_id: str) -> dict[str, Any]:
    etag = ""
    while True:
        answer = http.get(f"/v1/jobs/{job_id}", params={"wait": 30}, headers={"If-None-Match": etag})
        if answer.status_code == httpx.codes.NOT_MODIFIED:
            continue
        job: dict[str, Any] = answer.raise_for_status().json()
        if job["done"]:
            assert job["status"] == "succeeded", job["error"]
            return job
        etag = answer.headers["ETag"]


def _moment(job: dict[str, Any], name: str) -> float:
    return datetime.fromisoformat(job[name]).timestamp()
