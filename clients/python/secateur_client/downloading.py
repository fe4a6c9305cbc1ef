"""A file that arrives in parts, over as many connections and processes as it takes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from secateur_client.errors import DigestMismatch, DownloadFailed
from secateur_client.resources import Artifact


def target_of(artifact: Artifact, path: Path) -> Path:
    """The file to write: `path`, or in it when that is a folder. Raises DownloadFailed for a name that is a path."""
    if not path.is_dir():
        return path
    # The name comes from the server and becomes a path here.
    name = artifact.name
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise DownloadFailed(f"The server names an artifact {name!r}, which is no file's name.")
    return path / name


class Download:
    """What has come of an artifact so far lies beside its target, which only ever is the whole and verified file."""

    def __init__(self, artifact: Artifact, target: Path) -> None:
        self._artifact, self._target = artifact, target
        # With the digest in its name, what an earlier call left can only be of this very file.
        self._part = target.with_name(f"{target.name}.{artifact.sha256[:12]}.part")

    @property
    def is_there(self) -> bool:
        """Whether the target is this file already."""
        return self._target.is_file() and _sha256(self._target) == self._artifact.sha256

    @property
    def etag(self) -> str:
        return f'"{self._artifact.sha256}"'

    def have(self) -> int:
        """Bytes that have come. A part that is too long is none."""
        try:
            size = self._part.stat().st_size
        except FileNotFoundError:
            return 0
        return size if size <= self._artifact.size else 0

    def missing(self) -> int:
        return self._artifact.size - self.have()

    def begin(self, at: int) -> None:
        """Cut off what lies beyond the first `at` bytes."""
        self._part.parent.mkdir(parents=True, exist_ok=True)
        with self._part.open("ab") as file:
            file.truncate(at)

    def append(self, piece: bytes) -> None:
        with self._part.open("ab") as file:
            file.write(piece)
            too_much = file.tell() > self._artifact.size
        if too_much:
            self._part.unlink()
            raise DownloadFailed(f"More than the {self._artifact.size} bytes of {self._artifact.name} came.")

    def finish(self) -> Path:
        """Give the file its name. Raises DigestMismatch, after which nothing of it is left."""
        self._part.parent.mkdir(parents=True, exist_ok=True)
        with self._part.open("ab") as file:  # of an artifact without bytes nothing came
            os.fsync(file.fileno())
        if (found := _sha256(self._part)) != self._artifact.sha256:
            self._part.unlink()
            raise DigestMismatch(
                f"{self._artifact.name} came damaged: its sha256 is {found}, and should be {self._artifact.sha256}."
            )
        return self._part.replace(self._target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
