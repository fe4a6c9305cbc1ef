"""The embedded stack: PostgreSQL, a Redis-protocol broker, the API and workers on one machine, out of wheels.

    with stack(state_dir=Path(".secateur")) as running:
        print(running.url, running.api_key)

Needs the extra `local`. `start_postgres` and `start_broker` run one server alone.
"""

from app.local.broker import start_broker
from app.local.errors import LocalError, NotRunning, PortTaken, ServerDidNotStart, ServersNotInstalled, StateDirInUse
from app.local.postgres import start_postgres
from app.local.processes import Child, Server
from app.local.stack import Stack, database_url, stack
from app.local.up import up

__all__ = [
    "Child",
    "LocalError",
    "NotRunning",
    "PortTaken",
    "Server",
    "ServerDidNotStart",
    "ServersNotInstalled",
    "Stack",
    "StateDirInUse",
    "database_url",
    "stack",
    "start_broker",
    "start_postgres",
    "up",
]
