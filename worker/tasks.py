"""The Celery tasks: they take ids and hand over.

The process that receives messages never imports torch; the one that runs jobs does so once, before its first.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

from app.core.settings import Settings
from app.queue import RUN_JOB

if TYPE_CHECKING:
    from worker.process import JobProcess

logger = logging.getLogger(__name__)


def register(celery: Celery, settings: Settings) -> None:
    """Give the app its task, and each job process its set-up and its end."""
    process: list[JobProcess] = []  # empty in the process that receives messages

    @worker_process_init.connect(weak=False)
    def open_process(**_: object) -> None:
        try:
            from worker.process import JobProcess

            process.append(JobProcess(settings))
        except BaseException:
            # Celery would swallow it and let this process fail every job that it is given. Without one that is ready,
            # no attempt comes of the message that the worker holds, which its overseer sees.
            logger.critical("a job process could not be set up", exc_info=True)
            os._exit(os.EX_SOFTWARE)

    @worker_process_shutdown.connect(weak=False)
    def close_process(**_: object) -> None:
        while process:
            process.pop().close()

    @celery.task(name=RUN_JOB)
    def run_job(job_id: str) -> None:
        process[0].run(job_id)
