"""The HTTP application, built in a function; what it opens, its lifespan closes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

import app.api.errors as problems
from app.api import openapi
from app.api.deps import Parts
from app.api.metrics import Metrics, Watch
from app.api.middleware import BodyLimit, Bounds, RequestContext
from app.api.routes import artifacts, catalogue, checkpoints, compare, datasets, health, jobs, metrics, quotas, webhooks
from app.api.sharing import Shared
from app.core import tracing
from app.core.pace import Pace
from app.core.settings import Settings
from app.core.version import VERSION
from app.db.changes import Changes
from app.db.session import make_engine, make_sessions
from app.delivery.loop import MOST, Deliverer
from app.queue import Queue, Waker
from app.rates import Rates
from app.services.uploads import Arrivals
from app.storage import LocalStore
from app.sweeping import Round, Sweeper

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig
    from opentelemetry.trace import TracerProvider

    from app.delivery.sender import Sender

# Routes run on threads, forty at most: with a connection for each, none waits for one.
POOL_SIZE = 20

POLLS_A_SECOND = 20
"""Clients that look at jobs again and again are told to come back at this rate all together, however many they are."""

UNTRACED = frozenset({"/livez", "/readyz", "/metrics"})
"""What asks every few seconds, and is no part of anything."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Without settings, those of the environment; raises when they are missing or wrong."""
    settings = settings or Settings()
    changes = Changes(settings.libpq_url)
    traces = tracing.make_provider("secateur-api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        parts = _open(settings, changes)
        sweeper = Sweeper(
            Round(parts.sessions, parts.queue, parts.store, settings.max_attempts, settings.limits.max_running),
            interval_seconds=settings.sweep_seconds,
        )
        deliverer = Deliverer(parts.sessions, lambda: _sender(settings))
        app.state.parts = parts
        app.state.watch = Watch(parts.sessions, parts.queue)
        changes.start()
        sweeper.start()
        parts.waker.start()
        deliverer.start()
        try:
            yield
        finally:
            await changes.stop()
            await deliverer.stop()
            await run_in_threadpool(sweeper.stop)
            await run_in_threadpool(parts.waker.stop)
            parts.queue.close()
            parts.rates.close()
            parts.engine.dispose()
            await run_in_threadpool(tracing.close, traces)

    app = FastAPIOffline(
        title="Secateur",
        version=VERSION,
        summary="Trains a regularized CNN, prunes it, and returns the smaller network with the evidence.",
        lifespan=lifespan,
        redoc_url=None,
        static_url="/docs/static",
        redirect_slashes=False,
        telemetry=_spans(traces),
    )
    app.state.changes = changes
    app.state.metrics = Metrics()
    _add_routes(app)
    problems.install(app)
    openapi.install(app)
    _bound_bodies(app, settings)
    app.add_middleware(RequestContext, metrics=app.state.metrics)  # the last one added is the outermost
    return app


def _add_routes(app: FastAPI) -> None:
    """As they are. Of an included router, each would be made again when the first request comes, and looked up twice by
    all requests."""
    for module in (jobs, compare, checkpoints, datasets, artifacts, webhooks, quotas, catalogue, health, metrics):
        app.routes.extend(module.router.routes)


def _spans(traces: TracerProvider) -> TelemetryConfig:
    """Of what FastAPI could tell of itself: a span a request. The rest is ours to say."""
    return {
        "tracer_provider": traces,
        "exclude": lambda scope: scope["path"] in UNTRACED,
        "operation_spans": False,
        "metrics": False,
        "logs": False,
        "auto_configure": False,
    }


def _bound_bodies(app: FastAPI, settings: Settings) -> None:
    usual = Bounds(settings.max_body_bytes, settings.body_seconds, settings.body_seconds)
    uploads = Bounds(settings.max_checkpoint_bytes, settings.upload_seconds, settings.body_seconds)
    of_paths = {checkpoints.PATH: uploads, datasets.PATH: uploads._replace(max_bytes=settings.max_dataset_bytes)}
    app.add_middleware(BodyLimit, usual=usual, of_paths=of_paths)


def _open(settings: Settings, changes: Changes) -> Parts:
    engine = make_engine(settings.sqlalchemy_url, pool_size=POOL_SIZE)
    queue = Queue(settings.redis_url.get_secret_value())
    return Parts(
        settings=settings,
        engine=engine,
        sessions=make_sessions(engine),
        reads=make_sessions(engine.execution_options(isolation_level="AUTOCOMMIT")),
        queue=queue,
        waker=Waker(queue),
        store=LocalStore(settings.artifact_dir),
        changes=changes,
        rates=Rates(settings.redis_url.get_secret_value()),
        shared=Shared(),
        arrivals=Arrivals(),
        polls=Pace(POLLS_A_SECOND),
    )


def _sender(settings: Settings) -> Sender:
    from app.delivery.guard import Resolver
    from app.delivery.sender import Sender

    return Sender(Resolver(threads=MOST), allow_private=settings.webhook_allow_private)
