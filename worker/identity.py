"""What a worker and its job process are called, in leases and in `/v1/system`."""

from __future__ import annotations

import os
import secrets
import socket

# Job processes inherit it. Not one of our settings: nobody is to set it.
_VARIABLE = "_SECATEUR_WORKER"


def christen() -> str:
    """In the process that receives messages, ahead of its job processes: give the worker its name. The random part
    tells it from a worker of another container that shares host name and process numbers."""
    os.environ[_VARIABLE] = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
    return worker_id()


def worker_id() -> str:
    """The worker's name: it outlives its job processes."""
    return os.environ[_VARIABLE]


def owner(job_process_pid: int) -> str:
    """Who holds a lease: one job process of this worker."""
    return f"{worker_id()}/{job_process_pid}"


def worker_of(owner: str) -> str:
    """The worker whose job process that is."""
    return owner.rpartition("/")[0]
