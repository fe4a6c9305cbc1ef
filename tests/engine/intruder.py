"""A program that reads an upload, as one whose reader has been taken over: it tries what is none of its business."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from worker.engine import apart
from worker.engine.errors import InvalidCheckpoint


def _tried(what: Callable[[], object]) -> str:
    try:
        return str(what())
    except OSError as error:
        return type(error).__name__


def _written(path: Path) -> str:
    path.write_text("overwritten")
    return "written"


def _main(arguments: list[str]) -> None:
    upload, target, secret, database = arguments
    found = {
        "the upload": _tried(Path(upload).read_text),
        "a file in its folder": _tried(lambda: _written(Path(target))),
        "another tenant's file": _tried(Path(secret).read_text),
        "to overwrite that": _tried(lambda: _written(Path(secret))),
        "the worker's environment": _tried(Path(f"/proc/{os.getppid()}/environ").read_text),
        "the worker's checkout": _tried(lambda: list(Path(__file__).parents[2].iterdir())),
        "the database": _tried(lambda: socket.socket(socket.AF_UNIX).connect(database)),
        "the internet": _tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
        "a program": _tried(lambda: os.execv("/bin/true", ["true"])),
    }
    raise InvalidCheckpoint(json.dumps(found))


if __name__ == "__main__":
    apart.carry_out(_main, InvalidCheckpoint)
