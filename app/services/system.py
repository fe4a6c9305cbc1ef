"""Whether the parts are up, and who works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from app.db import jobs, workers
from app.db.models import WorkerRow


class State(NamedTuple):
    workers: Sequence[tuple[WorkerRow, bool]]
    depth: jobs.Depth


def database_is_up(sessions: sessionmaker[Session]) -> bool:
    try:
        with sessions() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return False
    return True


def state(session: Session) -> State:
    return State(workers.all_workers(session), jobs.depth(session))
