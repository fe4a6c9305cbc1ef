"""The processes beside this one that make files."""

from __future__ import annotations

from contextlib import suppress

import psutil

from worker.engine import makers


def at_hand() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if _is_one(each)]


def _is_one(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # nor is one that has ended and is not waited for
        # Its starter goes on when the kernel closes its files, a moment before the program has its arguments.
        while not (words := process.cmdline()):
            pass
        return makers.__name__ in words
    return False
