"""The worker's sign of life in the database, for `/v1/system`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from app.db import workers

logger = logging.getLogger(__name__)

EVERY_SECONDS = 5.0


class Identity(NamedTuple):
    worker_id: str
    device: str
    device_name: str
    threads: int
    versions: Mapping[str, str]


class Presence:
    """Tells every few seconds that the worker is there and what it works on, from `start` to `stop`."""

    def __init__(self, sessions: sessionmaker[Session], identity: Identity) -> None:
        self._sessions, self._identity = sessions, identity
        self._job_id: str | None = None
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def working_on(self, job_id: str | None) -> None:
        self._job_id = job_id
        self._wake.set()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=EVERY_SECONDS)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            self._tell()
            self._wake.wait(EVERY_SECONDS)
        self._leave()

    def _tell(self) -> None:
        try:
            with self._sessions.begin() as session:
                workers.seen(session, job_id=self._job_id, **self._identity._asdict())
        except SQLAlchemyError as error:
            logger.warning("sign of life failed", extra={"error": str(error)})

    def _leave(self) -> None:
        try:
            with self._sessions.begin() as session:
                workers.gone(session, self._identity.worker_id)
        except SQLAlchemyError as error:
            logger.warning("could not sign off", extra={"error": str(error)})
