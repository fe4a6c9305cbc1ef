"""Where artifacts live: one folder an attempt, which appears whole or not at all, and is never written again.

ROOT/JOB/3/                  what attempt 3 published
ROOT/JOB/.3.partial/         what attempt 3 is still writing
ROOT/JOB/.checkpoints/       states of its training, from any attempt, for the next to go on from
ROOT/.uploads/JOB            the file that an import is about, for as long as an attempt may need it
ROOT/.uploads/JOB.partial    one that still arrives
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Protocol


class ArtifactStore(Protocol):
    """What the service needs of a store. Paths are local: a remote store fetches into a cache first."""

    def stage(self, job_id: str, attempt: int) -> Path:
        """An empty folder to write into, invisible until `publish`."""

    def publish(self, job_id: str, attempt: int) -> None:
        """Make the staged folder durable and visible, at once."""

    def discard(self, job_id: str, attempt: int) -> None:
        """Remove whatever the attempt left, staged or published."""

    def folder(self, job_id: str, attempt: int) -> Path:
        """The attempt's published folder."""

    def checkpoints(self, job_id: str) -> Path:
        """The folder of the job's training checkpoints: there from the first `stage` until `tidy`."""

    def tidy(self, job_id: str, attempt: int | None, checkpoints: Collection[str], last: int) -> None:
        """Remove what is left of a job's attempts up to the `last` one, but what `attempt` published and the training
        checkpoints named. Raises OSError when something is left all the same."""

    def remove(self, job_id: str) -> None:
        """Remove all that there is of a job but its upload. Raises OSError when something is left all the same."""

    def incoming(self, job_id: str) -> Path:
        """Where to write the file that is uploaded for a job."""

    def accept(self, job_id: str) -> None:
        """Make the file that has arrived durable, and the job's upload."""

    def upload(self, job_id: str) -> Path:
        """The job's upload: there from `accept` until `drop_upload`."""

    def drop_upload(self, job_id: str) -> None:
        """Remove what was uploaded for a job, arrived or not."""

    def uploads(self) -> Mapping[str, float]:
        """All jobs for which there is an upload, arrived or not, and the seconds since the last write to it."""


_DRAFT = ".partial"


class LocalStore:
    """A store in a folder of this machine, or of a file system that all machines mount."""

    def __init__(self, root: Path) -> None:
        self._root, self._uploads = root, root / ".uploads"

    def folder(self, job_id: str, attempt: int) -> Path:
        return self._root / job_id / str(attempt)

    def _staging(self, job_id: str, attempt: int) -> Path:
        return self._root / job_id / f".{attempt}.partial"

    def stage(self, job_id: str, attempt: int) -> Path:
        folder = self._staging(job_id, attempt)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.checkpoints(job_id).mkdir(exist_ok=True)
        return folder

    def checkpoints(self, job_id: str) -> Path:
        return self._root / job_id / ".checkpoints"

    def publish(self, job_id: str, attempt: int) -> None:
        staging = self._staging(job_id, attempt)
        for path in staging.iterdir():
            _sync(path)
        _sync(staging)
        staging.rename(self.folder(job_id, attempt))
        _sync(staging.parent)

    def discard(self, job_id: str, attempt: int) -> None:
        shutil.rmtree(self._staging(job_id, attempt), ignore_errors=True)
        shutil.rmtree(self.folder(job_id, attempt), ignore_errors=True)

    def tidy(self, job_id: str, attempt: int | None, checkpoints: Collection[str], last: int) -> None:
        # Whoever asks may have been frozen, and the job been retried meanwhile.
        job, states = self._root / job_id, self.checkpoints(job_id)
        for folder, kept in ((states, checkpoints), (job, (str(attempt), states.name))):
            for path in _entries(folder):
                if path.name not in kept and _attempt_of(path) <= last:
                    _remove(path)
        if all(_attempt_of(path) <= last for path in _entries(job)):  # a later one will write into them
            for folder in (states, job):
                with suppress(OSError):  # it is not empty, or not there
                    folder.rmdir()

    def remove(self, job_id: str) -> None:
        _remove(self._root / job_id)

    def upload(self, job_id: str) -> Path:
        return self._uploads / job_id

    def incoming(self, job_id: str) -> Path:
        self._uploads.mkdir(parents=True, exist_ok=True)
        return self._uploads / f"{job_id}{_DRAFT}"

    def accept(self, job_id: str) -> None:
        draft = self.incoming(job_id)
        _sync(draft)
        draft.replace(self.upload(job_id))
        _sync(self._uploads)

    def drop_upload(self, job_id: str) -> None:
        for path in (self.incoming(job_id), self.upload(job_id)):
            path.unlink(missing_ok=True)

    def uploads(self) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for path in self._uploads.iterdir() if self._uploads.is_dir() else ():
            try:
                found[path.name.removesuffix(_DRAFT)] = time.time() - path.stat().st_mtime
            except FileNotFoundError:  # just now accepted, or removed by somebody else
                continue
        return found


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _attempt_of(path: Path) -> int:
    """Whose this is in a job's folder, or among its checkpoints; 0 where its name does not tell."""
    found = re.match(r"\.?(\d+)", path.name)
    return int(found[1]) if found else 0


def _remove(path: Path) -> None:
    """Whatever somebody else removes meanwhile is gone as well. Raises OSError when it cannot be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    if path.exists():
        raise OSError(f"{path} could not be removed")


def write_durably(path: Path, content: bytes) -> None:
    """Write a file that after this returns survives a power cut, and before that is not there. Its folder must be."""
    draft = path.with_name(f".{path.name}.partial")
    try:
        draft.write_bytes(content)
        _sync(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)  # on a full disk, others need its room
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The file's digest in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_intact(path: Path, *, size: int, sha256: str) -> bool:
    """Whether the file is there with the bytes that were published. Hashed once for each state of the file on disk."""
    try:
        stat = path.stat()
        return stat.st_size == size and _digest_of_state(path, stat.st_mtime_ns, stat.st_ino, size) == sha256
    except OSError:
        return False


@lru_cache(maxsize=4096)
def _digest_of_state(path: Path, mtime_ns: int, inode: int, size: int) -> str:  # noqa: ARG001 - the cache's key
    return sha256_of(path)
