"""The processes beside this one that make files."""

from __future__ import annotations

import psutil

from worker.engine import makers


def at_hand() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [each for each in children if each.status() != psutil.STATUS_ZOMBIE and makers.__name__ in each.cmdline()]
