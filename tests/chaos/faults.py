"""What can happen to a service, one function a fault. Each takes its victims from chance and says what it did."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import redis

from app.local.processes import Child
from app.queue import QUEUE
from tests.faults.cluster import LEASE_SECONDS, Cluster


class NoVictim(Exception):
    """There is nobody whom this fault could hit now."""


@dataclass
class World:
    """Whom faults can hit, and those who are to be woken later."""

    cluster: Cluster
    apis: Sequence[Child]
    chance: random.Random
    cancelled: set[str] = field(default_factory=set)
    """Jobs whose cancel was accepted."""
    _sleepers: list[threading.Timer] = field(default_factory=list)

    def pick(self, victims: Sequence[psutil.Process]) -> psutil.Process:
        if not victims:
            raise NoVictim
        return self.chance.choice(victims)

    def child(self, child: Child) -> psutil.Process:
        if not child.is_running:
            raise NoVictim
        return psutil.Process(child.pid)

    def stop_for(self, seconds: float, *processes: psutil.Process) -> None:
        for process in processes:
            process.suspend()
        timer = threading.Timer(seconds, _wake, processes)
        timer.start()
        self._sleepers.append(timer)

    def wake_all(self) -> None:
        """Wait for the last sleeper to be woken."""
        for timer in self._sleepers:
            timer.join()


def _wake(*processes: psutil.Process) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # somebody killed it in its sleep
            process.resume()


def kill_job_process(world: World) -> None:
    world.pick(world.cluster.job_processes()).kill()


def kill_worker(world: World) -> None:
    world.pick(world.cluster.workers()).kill()


def terminate_worker(world: World) -> None:
    world.pick(world.cluster.workers()).terminate()


def freeze_job_process(world: World) -> None:
    world.stop_for(LEASE_SECONDS + world.chance.uniform(1, 4), world.pick(world.cluster.job_processes()))


def freeze_worker(world: World) -> None:
    world.stop_for(world.chance.uniform(1, 6), world.pick(world.cluster.workers()))


def kill_broker(world: World) -> None:
    world.child(world.cluster.stack.children["broker"]).kill()


def freeze_broker(world: World) -> None:
    world.stop_for(world.chance.uniform(1, 8), world.child(world.cluster.stack.children["broker"]))


def flush_broker(world: World) -> None:
    with world.cluster.operator() as operator:
        operator.flushall()


def lose_message(world: World) -> None:
    with world.cluster.operator() as operator:
        if operator.rpop(QUEUE) is None:
            raise NoVictim


def repeat_message(world: World) -> None:
    folders = [path.name for path in world.cluster.folder("x").parent.glob("job_*")]
    if not folders:
        raise NoVictim
    job_id = world.chance.choice(sorted(folders))
    for _ in range(5):
        world.cluster.queue.wake(job_id)


def send_garbage(world: World) -> None:
    with world.cluster.operator() as operator:
        operator.lpush(QUEUE, world.chance.choice(["garbage", "{}", '{"body": "x"}', "[]"]))


def kill_database(world: World) -> None:
    world.child(world.cluster.stack.children["postgres"]).kill()


def freeze_database(world: World) -> None:
    postgres = world.child(world.cluster.stack.children["postgres"])
    world.stop_for(world.chance.uniform(1, 4), postgres, *postgres.children(recursive=True))


def cancel_job(world: World) -> None:
    live = [job["id"] for job in world.cluster.all_jobs() if not job["done"] and job["kind"] == "train"]
    if not live:
        raise NoVictim
    job_id = world.chance.choice(live)
    answer = world.cluster.http.post(f"/v1/jobs/{job_id}/cancel")
    if answer.status_code == 409:
        raise NoVictim  # it has ended meanwhile
    # After any other answer, 503 too, it may have been accepted.
    world.cancelled.add(job_id)


def kill_api(world: World) -> None:
    world.child(world.chance.choice(world.apis)).kill()


def terminate_api(world: World) -> None:
    world.child(world.chance.choice(world.apis)).send_signal(signal.SIGTERM)


def freeze_api(world: World) -> None:
    world.stop_for(world.chance.uniform(1, 6), world.child(world.chance.choice(world.apis)))


def damage_checkpoint(world: World) -> None:
    files = sorted(world.cluster.folder("x").parent.glob("job_*/.checkpoints/*.pt"))
    if not files:
        raise NoVictim
    _truncate(world.chance.choice(files), world.chance)


def _truncate(path: Path, chance: random.Random) -> None:
    try:
        content = path.read_bytes()
        path.write_bytes(content[: chance.randrange(len(content) or 1)])
    except FileNotFoundError:
        raise NoVictim from None


FAULTS: Sequence[Callable[[World], None]] = (
    kill_job_process,
    kill_job_process,  # the commonest in life, and the one that most can go wrong after
    kill_worker,
    terminate_worker,
    freeze_job_process,
    freeze_worker,
    kill_broker,
    freeze_broker,
    flush_broker,
    lose_message,
    repeat_message,
    send_garbage,
    kill_database,
    freeze_database,
    cancel_job,
    kill_api,
    terminate_api,
    freeze_api,
    damage_checkpoint,
)

PASSING = (NoVictim, psutil.NoSuchProcess, redis.RedisError, httpx.HTTPError)
"""What a fault may raise because an earlier one was there first."""
