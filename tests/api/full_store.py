"""`python -m tests.api.full_store FOLDER`: take in a file that is larger than the disk of this folder, and print what
came of it and which files are left."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from app.core.errors import StoreFull
from app.services.checkpoints import receive
from app.storage import LocalStore


async def _chunks() -> AsyncIterator[bytes]:
    for _ in range(64):
        yield bytes(1 << 20)


def main(folder: Path) -> None:
    try:
        asyncio.run(receive(LocalStore(folder), _chunks()))
    except StoreFull as error:
        left = [path.name for path in folder.rglob("*") if path.is_file()]
        sys.stdout.write(f"{error.status} {error.code} {error.retryable} {left}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
