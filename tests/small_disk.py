"""A disk that is small enough to be filled, seen by one program alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_on_small_disk(folder: Path, module: str, *arguments: object, megabytes: int, seconds: float = 120) -> str:
    """What `python -m module` prints, with a disk of this size at `folder`. Needs a right that containers lack."""
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs "$1" && shift && exec "$@"'
    # Root of a user namespace would lack root's way to the database's socket; anybody else needs one to mount at all.
    namespaces = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    run = [sys.executable, "-m", module, *arguments]
    command = ["unshare", *namespaces, "sh", "-c", mount, "sh", folder, *run]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fill(folder: Path) -> Path:
    """Leave no room on the disk of this folder. Returns the file that took it."""
    path = folder / "somebody-elses"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(b"\0" * size):
                    continue
            except OSError:
                continue  # no more of this size
    return path
