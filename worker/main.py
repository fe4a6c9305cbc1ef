"""Celery's entry: `secateur worker` starts it. Settings come from the environment."""

from __future__ import annotations

from celery.signals import setup_logging

from app.core import logging
from app.core.settings import Settings
from app.queue import make_celery
from worker.tasks import register

# A worker waits for messages on this connection, so it must outlast a quiet queue's polling.
SOCKET_TIMEOUT_SECONDS = 10

settings = Settings()
celery = make_celery(settings.redis_url.get_secret_value(), socket_timeout_seconds=SOCKET_TIMEOUT_SECONDS)
# A spawned job process gets a copy of the app without tasks: it has to import this module for itself.
celery.conf.include = [__name__]
register(celery, settings)


@setup_logging.connect(weak=False)
def configure_logging(**_: object) -> None:
    logging.configure(settings.log_level)
