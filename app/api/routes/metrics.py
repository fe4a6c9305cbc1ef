"""For Prometheus. Not for the public: it tells how much the service has to do, though not for whom."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Header, Request, Response

from app.api.deps import make_router
from app.api.metrics import Metrics, Watch

router = make_router()


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request, accept: Annotated[str, Header()] = "") -> Response:
    """What there is to measure, also while the database or the broker is away."""
    counted: Metrics = request.app.state.metrics
    watch: Watch = request.app.state.watch
    measured, broker_is_up = await asyncio.gather(watch.database.answer(), watch.broker.answer())
    text, media_type = counted.exposition(measured, broker_is_up=bool(broker_is_up), accept=accept)
    return Response(text, media_type=media_type)
