"""What a process gives up for good before it reads what a client sent: files that are none of its business, sockets,
and other processes. By Linux' Landlock and seccomp, which need no privileges.

It bounds what a flaw in the reader can be used for. It does not bound time or memory, nor keep a process from forking.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2

# linux/landlock.h; the numbers are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 5, 1 << 8, 1 << 14
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_OF_OWN_FOLDER = _READ_FILE | _READ_DIR | _WRITE_FILE | _MAKE_REG | _REMOVE_FILE | _TRUNCATE
"""To put a whole file in the place of another takes the right to remove that one."""
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All that a version knows, so that all of it is taken; later ones know what the fifth does."""
_SIGNALS_AND_ABSTRACT_SOCKETS = 3

# linux/seccomp.h, linux/filter.h and linux/audit.h, and per architecture the numbers of socket and io_uring_setup.
_ALLOW, _REFUSE = 0x7FFF_0000, 0x0005_0000 | errno.EACCES
_LOAD, _EQUALS, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
_X32 = 0x4000_0000
_CALLS = {"x86_64": (0xC000_003E, (41, 425)), "aarch64": (0xC000_00B7, (198, 425))}


def enter(*, read: Path, write: Path) -> bool:
    """From now on this process reads one file and its own libraries, writes in one folder, and connects to nobody.
    False where the kernel cannot see to files: then they are as they were. Raises OSError."""
    if sys.platform != "linux":
        return False
    libc, version = ctypes.CDLL(None, use_errno=True), landlock_version()
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if version > 0:
        _restrict_files(libc, version, [read, *_libraries()], write)
    _refuse_sockets(libc)
    return version > 0


def landlock_version() -> int:
    """0 where the kernel has none, or does not let this process use it."""
    if sys.platform != "linux":
        return 0
    version: int = ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    return max(0, version)


def _libraries() -> Sequence[Path]:
    """Where modules are found that have not been imported yet; of a checkout, its code alone."""
    root = Path(__file__).parents[2]
    found = {Path(path) for path in sys.path if path} - {root}
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return [path for path in {*found, *installed, root / "app", root / "worker"} if path.exists()]


def _restrict_files(libc: ctypes.CDLL, version: int, read: Iterable[Path], write: Path) -> None:
    rights = _FILE_RIGHTS[min(version, 5)]
    # An older kernel refuses the fields that it does not know.
    fields = struct.pack("QQQ", rights, 0, _SIGNALS_AND_ABSTRACT_SOCKETS) if version >= 6 else struct.pack("Q", rights)
    ruleset = _checked(libc.syscall(_CREATE_RULESET, fields, ctypes.c_size_t(len(fields)), 0))
    try:
        for path in read:
            _allow(libc, ruleset, path, (_READ_FILE | _READ_DIR) & rights)
        _allow(libc, ruleset, write, _OF_OWN_FOLDER & rights)
        _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", rights if path.is_dir() else rights & _OF_FILES, descriptor)
        _checked(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))
    finally:
        os.close(descriptor)


def _refuse_sockets(libc: ctypes.CDLL) -> None:
    """Landlock would see to TCP, but neither to UDP nor to sockets that have a path, as a database's may."""
    if platform.machine() not in _CALLS:
        return
    architecture, calls = _CALLS[platform.machine()]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUALS, 0, len(calls) + 2, architecture),  # of another one, numbers mean other calls: refuse all
        (_LOAD, 0, 0, _NUMBER_AT),
        *((_EQUALS, len(calls) - index, 0, call) for index, call in enumerate(calls)),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *step) for step in program)
    kept = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(kept))
    _checked(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
