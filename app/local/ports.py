"""TCP ports of this machine."""

from __future__ import annotations

import os
import socket

from app.local.errors import PortTaken


def free_port(host: str) -> int:
    return _port_after_listening(host, 0)


def is_free(host: str, port: int) -> bool:
    try:
        _port_after_listening(host, port)
    except OSError:
        return False
    return True


def usable_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. Raise PortTaken, with the system's reason, when nobody may listen there."""
    try:
        return _port_after_listening(host, port)
    except OSError as error:
        raise PortTaken(host, port, _reason(error)) from None


def http_address(host: str, port: int) -> str:
    """Where a client on this machine finds a server that listens there."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _reason(error: OSError) -> str:
    """The system's words, without those that Python adds; a name that leads nowhere has no number of the system's."""
    if isinstance(error, socket.gaierror) or error.errno is None:
        return error.strerror or str(error)
    return os.strerror(error.errno)


def _port_after_listening(host: str, port: int) -> int:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.create_server(address[:2], family=family) as listener:
        return int(listener.getsockname()[1])
