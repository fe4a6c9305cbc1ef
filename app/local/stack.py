"""The whole service on one machine: servers, schema, first key, API and workers, started and stopped in order."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.core.cores import usable_cores
from app.core.settings import CLIENT_VARIABLES, PREFIX
from app.db import attempts
from app.db.migrate import upgrade
from app.db.session import session_scope
from app.local.broker import start_broker
from app.local.errors import NotRunning
from app.local.folders import held, private_folder
from app.local.ports import http_address, usable_port
from app.local.postgres import start_postgres, url_of_running
from app.local.processes import Child, dies_with_parent, end_leftover, never
from app.local.supervisor import Supervisor
from app.services.keys import ensure_first_key

_API_START_SECONDS = 60.0
_API_STOP_SECONDS = 15.0  # uvicorn gives running requests 10
_WORKER_STOP_SECONDS = 30.0  # to hand its job back, also while the database or the disk is slow
_LARGEST_LOG_BYTES = 10_000_000


@dataclass(frozen=True)
class Stack:
    """A running service: where it is and with which key it is used."""

    url: str
    api_key: str
    key_file: Path
    state_dir: Path
    database_url: str
    redis_url: str
    environment: Mapping[str, str]
    """What its processes were given: for another process beside them."""
    children: Mapping[str, Child]
    """By name: postgres, broker, api, worker-1 …"""


def _log_notice(text: str) -> None:
    logging.getLogger(__name__).warning(text)


@contextmanager
def stack(
    *,
    state_dir: Path,
    data_dir: Path | None = None,
    workers: int = 1,
    host: str = "127.0.0.1",
    port: int = 0,
    env: Mapping[str, str] | None = None,
    durable: bool = True,
    notify: Callable[[str], None] = _log_notice,
    cancelled: Callable[[], bool] = never,
) -> Iterator[Stack]:
    """Run the service until the end of the block, restarting what dies; its data stays in `state_dir`.

    `env` adds settings for API and workers. `cancelled` is asked while things start: once true, what has started is
    stopped and StartCancelled raised.
    """
    port = usable_port(host, port)
    with contextlib.ExitStack() as cleanup:
        folder = cleanup.enter_context(held(state_dir.absolute()))
        logs = _prepare(folder)
        supervisor = Supervisor(notify)
        cleanup.callback(supervisor.end)
        postgres = cleanup.enter_context(
            start_postgres(folder / "postgres", durable=durable, log=logs / "postgres.log", cancelled=cancelled)
        )
        broker = cleanup.enter_context(start_broker(folder / "broker", log=logs / "broker.log", cancelled=cancelled))
        key = _set_up(postgres.url, folder)
        environment = _environment(folder, postgres.url, broker.url, data_dir, env or {})
        worker_processes = [_worker(folder, environment, workers, number) for number in range(1, workers + 1)]
        api = _api(folder, environment, host, port)
        _start(worker_processes, cleanup)
        _start([api], cleanup)
        url = http_address(host, port)
        # One for all looks: to make it, with the certificates that it brings, takes ten times what a look does.
        with httpx.Client(base_url=url, timeout=5.0, trust_env=False) as client:
            api.wait_until_ready(lambda: _is_ready(client), _API_START_SECONDS, cancelled)
        children = [postgres.child, broker.child, api, *worker_processes]
        supervisor.watch(children)
        cleanup.callback(supervisor.halt)
        yield Stack(
            url=url,
            api_key=key,
            key_file=folder / "api-key",
            state_dir=folder,
            database_url=postgres.url,
            redis_url=broker.url,
            environment=environment,
            children={child.name: child for child in children},
        )


def database_url(state_dir: Path) -> str:
    """The database of the stack that runs in `state_dir`, as postgresql://…. Raise NotRunning when none does."""
    url = url_of_running(state_dir / "postgres")
    if url is None:
        raise NotRunning(state_dir)
    return url


def _prepare(folder: Path) -> Path:
    """End what an earlier run left, API and workers ahead of the servers that they use; return the folder for logs."""
    for record in sorted(private_folder(folder / "processes").glob("*.json")):
        end_leftover(record, signal.SIGTERM)
    logs = private_folder(folder / "logs")
    for log in logs.glob("*.log"):
        if log.stat().st_size > _LARGEST_LOG_BYTES:
            log.replace(log.with_suffix(".log.old"))
    return logs


def _set_up(database_url: str, folder: Path) -> str:
    url = database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    upgrade(url)
    with session_scope(url) as session:
        # Its workers have ended, however that came about: what they were at goes on now, not when its leases run out.
        attempts.expire_leases(session)
    ensure_first_key(url, folder / "api-key")
    return (folder / "api-key").read_text().strip()


def _environment(
    folder: Path, database_url: str, redis_url: str, data_dir: Path | None, extra: Mapping[str, str]
) -> dict[str, str]:
    """The operator's environment, with our servers in it and without what is meant for clients."""
    inherited = {name: value for name, value in os.environ.items() if name not in CLIENT_VARIABLES}
    inherited.setdefault(PREFIX + "DATA_DIR", str(private_folder(folder / "data")))
    if data_dir is not None:
        inherited[PREFIX + "DATA_DIR"] = str(data_dir)
    # The children work in the state folder, where a relative path would mean something else.
    inherited[PREFIX + "DATA_DIR"] = str(Path(inherited[PREFIX + "DATA_DIR"]).absolute())
    return {
        **inherited,
        PREFIX + "DATABASE_URL": database_url,
        PREFIX + "REDIS_URL": redis_url,
        PREFIX + "ARTIFACT_DIR": str(private_folder(folder / "artifacts")),
        "PYTHONUNBUFFERED": "1",
        **extra,
    }


def _api(folder: Path, environment: Mapping[str, str], host: str, port: int) -> Child:
    arguments = ["api", "--host", host, "--port", str(port)]
    return _command(folder, "api", arguments, environment, _API_STOP_SECONDS)


def _worker(folder: Path, environment: Mapping[str, str], workers: int, number: int) -> Child:
    """One worker with its share of the cores, unless the operator gave it another."""
    threads = environment.get(PREFIX + "WORKER_THREADS") or str(max(1, usable_cores() // workers))
    shares = {PREFIX + "WORKER_THREADS": threads, "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", threads)}
    worker = _command(folder, f"worker-{number}", ["worker"], {**environment, **shares}, _WORKER_STOP_SECONDS)
    # A job process that still imports torch dies of the signal; Celery would wait for it. Later it ignores the signal.
    worker.stop_descendants = True
    return worker


def _command(
    folder: Path, name: str, arguments: Sequence[str], environment: Mapping[str, str], stop_seconds: float
) -> Child:
    """A process of the command line's. `-P`: a folder `app` where it is started must not hide ours."""
    return Child(
        name=name,
        command=dies_with_parent([sys.executable, "-P", "-m", "app.cli", *arguments], "TERM"),
        environment=environment,
        folder=folder,
        log=folder / "logs" / f"{name}.log",
        record=folder / "processes" / f"{name}.json",
        stop_seconds=stop_seconds,
    )


def _start(children: Sequence[Child], cleanup: contextlib.ExitStack) -> None:
    """Start them; at the end, ask all of them to stop before waiting for any."""
    for child in children:
        cleanup.callback(child.stop)
        child.start()
    for child in children:
        cleanup.callback(child.ask_to_stop)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
