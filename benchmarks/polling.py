"""A thousand clients that wait for one training, and what that costs it: python -m benchmarks.polling [FOLDER].

Runs the whole service here with one worker. Each round trains the same spec three times in turn: watched by nobody, by
clients that long-poll (`?wait=30`), and by clients that ask again with `If-None-Match` when `Retry-After` says so. What
a training takes is by the service's own clock, from `started_at` to `finished_at`.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import torch

from app.core.cores import usable_cores
from app.local import Stack, stack
from worker.engine.device import name_of

RESULTS = Path(__file__).with_name("polling.md")
ENV = {"SECATEUR_WORKER_THREADS": "1", "SECATEUR_REQUESTS_PER_MINUTE": "none"}


@dataclass
class Seen:
    """What the clients of one training saw."""

    answers: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    ended: int = 0
    seconds: list[float] = field(default_factory=list)
    """From the job's end to each client's knowledge of it, by the clients' clock."""


async def _wait(client: httpx.AsyncClient, url: str, seen: Seen, *, long_poll: bool) -> None:
    tag, pause = "", 0.0
    while True:
        await asyncio.sleep(pause)
        try:
            answer = await client.get(
                url, params={"wait": 30} if long_poll else {}, headers={"If-None-Match": tag} if tag else {}
            )
        except httpx.HTTPError as error:
            seen.errors[type(error).__name__] += 1
            continue
        seen.answers[answer.status_code] += 1
        tag = answer.headers.get("ETag", tag)
        pause = 0.0 if long_poll else float(answer.headers.get("Retry-After", 0))
        if answer.status_code == 200 and answer.json()["done"]:
            seen.ended += 1
            finished = datetime.fromisoformat(answer.json()["finished_at"]).timestamp()
            seen.seconds.append(time.time() - finished)
            return


async def _crowd(service: Stack, job_id: str, clients: int, *, long_poll: bool) -> Seen:
    seen = Seen()
    # Each with a connection of its own: a pool of a thousand is looked through at each request, for milliseconds.
    context = ssl.create_default_context()
    headers = {"Authorization": f"Bearer {service.api_key}"}

    async def one() -> None:
        async with httpx.AsyncClient(
            base_url=service.url, headers=headers, timeout=60, trust_env=False, verify=context
        ) as client:
            await _wait(client, f"/v1/jobs/{job_id}", seen, long_poll=long_poll)

    await asyncio.gather(*(one() for _ in range(clients)))
    return seen


def _trained(service: Stack, spec: Mapping[str, Any], clients: int, *, long_poll: bool) -> tuple[float, Seen]:
    """Seconds that the training took, and what its clients saw."""
    headers = {"Authorization": f"Bearer {service.api_key}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=60, trust_env=False) as http:
        job_id = http.post("/v1/jobs", json=spec).raise_for_status().json()["id"]
        seen = asyncio.run(_crowd(service, job_id, clients, long_poll=long_poll)) if clients else Seen()
        while not (job := http.get(f"/v1/jobs/{job_id}", params={"wait": 30}).raise_for_status().json())["done"]:
            pass
    assert job["status"] == "succeeded", job["error"]
    assert seen.ended == clients
    started, finished = (datetime.fromisoformat(job[name]) for name in ("started_at", "finished_at"))
    return (finished - started).total_seconds(), seen


def _spec(data_dir: Path | None, epochs: int) -> dict[str, Any]:
    return {
        "kind": "train",
        "dataset": {"name": "mnist" if data_dir else "digits"},
        "training": {"epochs": epochs},
        "histogram": {"tensors": []},
    }


MODES = {"nobody": (False, False), "long-poll": (True, True), "304": (True, False)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("data_dir", nargs="?", type=Path, help="folder that holds MNIST/raw; digits without it")
    options.add_argument("--clients", type=int, default=1_000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--epochs", type=int, help="2 of MNIST or 40 of digits unless told")
    asked = options.parse_args()
    spec = _spec(asked.data_dir, asked.epochs or (2 if asked.data_dir else 40))
    took: dict[str, list[float]] = {mode: [] for mode in MODES}
    seen: dict[str, list[Seen]] = {mode: [] for mode in MODES}
    with (
        tempfile.TemporaryDirectory(prefix="polling-") as folder,
        stack(state_dir=Path(folder) / "state", data_dir=asked.data_dir, workers=1, env=ENV) as service,
    ):
        _trained(service, {**spec, "training": {"epochs": 1}}, 0, long_poll=False)  # warm
        for number in range(asked.rounds):
            for mode, (watched, long_poll) in MODES.items():
                seconds, found = _trained(service, spec, asked.clients if watched else 0, long_poll=long_poll)
                took[mode].append(seconds)
                seen[mode].append(found)
                print(f"round {number + 1}, {mode}: {seconds:.1f} s; {dict(found.answers)} {dict(found.errors)}")
    text = _written(spec, asked.clients, took, seen)
    RESULTS.write_text(text)
    print(text)


def _written(
    spec: Mapping[str, Any], clients: int, took: Mapping[str, list[float]], seen: Mapping[str, list[Seen]]
) -> str:
    alone = statistics.median(took["nobody"])
    rows = [
        "| "
        + " | ".join(
            (
                mode,
                ", ".join(f"{seconds:.1f}" for seconds in took[mode]),
                f"{statistics.median(took[mode]) / alone:.2f}",
                _answers(seen[mode]),
                str(sum(sum(each.errors.values()) for each in seen[mode])),
                _knowledge(seen[mode]),
            )
        )
        + " |"
        for mode in MODES
    ]
    return "\n".join(
        (
            f"# {clients:,} clients that wait for one training",
            "",
            f"{spec['training']['epochs']} epochs of {spec['dataset']['name']}, one worker with one thread, one API "
            f"process, the clients and the servers all on {usable_cores()} cores of {name_of(torch.device('cpu'))}; "
            f"{datetime.now().astimezone():%Y-%m-%d}. Written by `python -m benchmarks.polling`.",
            "",
            "| watched by | training, s | ratio of medians | answers | errors | end known after, s: median, last |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        )
    )


def _answers(found: list[Seen]) -> str:
    total = sum((each.answers for each in found), Counter[int]())
    return ", ".join(f"{count:,} × {status}" for status, count in sorted(total.items())) or "none"


def _knowledge(found: list[Seen]) -> str:
    seconds = [each for one in found for each in one.seconds]
    return f"{statistics.median(seconds):.1f}, {max(seconds):.1f}" if seconds else ""


if __name__ == "__main__":
    main()
