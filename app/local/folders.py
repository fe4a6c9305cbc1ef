"""Private folders and files, and the lock that says who uses them."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.local.errors import NotAStateDir, StateDirInUse


def private_folder(path: Path) -> Path:
    """`path`, made if need be, readable by its owner alone."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def write_private(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old or the new file, never half of one, and nobody else sees either."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


@contextmanager
def held(directory: Path) -> Iterator[Path]:
    """The private folder `directory`, ours alone until the end: the kernel drops the lock even after kill -9."""
    _refuse_foreign(directory)
    private_folder(directory)
    with (directory / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StateDirInUse(directory, lock.read().strip()) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield directory


def _refuse_foreign(directory: Path) -> None:
    """A slip such as `--state-dir ~` must not close the home folder to others and strew servers over it."""
    if directory.is_dir() and any(directory.iterdir()) and not (directory / "lock").exists():
        raise NotAStateDir(directory)
