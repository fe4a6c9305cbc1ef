"""Whether the parts are up, and who works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from app.db import jobs, workers
from app.db.models import REVISION, WorkerRow


class State(NamedTuple):
    workers: Sequence[tuple[WorkerRow, bool]]
    depth: jobs.Depth


class Database(NamedTuple):
    answers: bool
    migrated: bool | None
    """None: nobody can tell."""


def database(sessions: sessionmaker[Session]) -> Database:
    try:
        with sessions() as session:
            revision = session.scalar(text("SELECT version_num FROM alembic_version"))
    except ProgrammingError:  # no migration has made that table
        return Database(answers=True, migrated=False)
    except SQLAlchemyError:
        return Database(answers=False, migrated=None)
    # In an upgrade the schema is newer for a while than the processes that still serve.
    return Database(answers=True, migrated=revision is not None and revision >= REVISION)


def state(session: Session) -> State:
    return State(workers.all_workers(session), jobs.depth(session))
