"""`python -m worker.health`: whether a worker of this machine gives signs of life. Exit code 1 when none does."""

from __future__ import annotations

import socket
import sys

from app.core.settings import Settings
from app.db import workers
from app.db.session import session_scope


def main() -> None:
    with session_scope(Settings().sqlalchemy_url) as session:
        here = f"{socket.gethostname()}:"
        alive = any(alive for row, alive in workers.all_workers(session) if row.id.startswith(here))
    sys.exit(None if alive else "No worker of this machine has been seen lately.")


if __name__ == "__main__":
    main()
