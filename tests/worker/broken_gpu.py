"""`python -m tests.worker.broken_gpu URL FOLDER JOB`: run a job in a process that can compute no more."""

from __future__ import annotations

import sys
from pathlib import Path

from app.core import logging
from app.core.limits import UNLIMITED
from app.db.session import make_engine, make_sessions
from app.storage import LocalStore
from worker.engine.data import DatasetStore
from worker.runner import Runtime, run_job


def main(url: str, folder: Path, job_id: str) -> None:
    logging.configure("INFO")
    sessions, store = make_sessions(make_engine(url)), LocalStore(folder)
    told = (_nobody, _nobody, _nobody)
    runtime = Runtime(
        "w/1", sessions, store, DatasetStore(None), 0.05, 30, 30, 0, UNLIMITED, *told, is_broken=lambda: True
    )
    run_job(job_id, runtime)


def _nobody(_: object) -> None:
    """Hears of anything."""


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
