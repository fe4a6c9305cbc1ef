"""`python -m tests.worker.full_disk URL FOLDER JOB NEXT`: run two jobs whose artifacts lie on a small disk, and print
what files they leave. Somebody else fills the disk once the first one trains."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from app.core.limits import UNLIMITED
from app.db import sweep
from app.db.session import make_engine, make_sessions
from app.storage import LocalStore
from tests.small_disk import fill
from tests.waiting import wait_until
from worker.engine.data import DatasetStore
from worker.runner import Runtime, run_job


def main(url: str, folder: Path, job_ids: Sequence[str]) -> None:
    store, engine = LocalStore(folder), make_engine(url)
    threading.Thread(target=_fill, args=(folder, store.checkpoints(job_ids[0])), daemon=True).start()
    sessions = make_sessions(engine)
    told = (_nobody, _nobody, _nobody)
    runtime = Runtime("w/1", sessions, store, DatasetStore(None), 0.05, 30, 30, 0, UNLIMITED, *told)
    for job_id in job_ids:
        run_job(job_id, runtime)
    with sessions() as session:
        for ended in sweep.untidied(session):
            store.tidy(*ended)
    engine.dispose()
    sys.stdout.write(" ".join(sorted(path.name for path in folder.rglob("*") if path.is_file())))


def _nobody(_: object) -> None:
    """Hears of anything."""


def _fill(folder: Path, checkpoints: Path) -> None:
    wait_until(lambda: any(checkpoints.glob("*.pt")), timeout=30, what="a checkpoint")
    fill(folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
