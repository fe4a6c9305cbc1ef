"""For load balancers and operators."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Response

from app.api.deps import READER_ONLY, PartsDep, ReadSessionDep, make_router
from app.api.openapi import problems
from app.api.schemas import Readiness, System, Worker
from app.core.version import VERSION
from app.services import system

router = make_router(tags=["system"])


async def _broker_is_up(parts: PartsDep) -> bool:
    """Asked once for all who ask: a broker that hangs would hold up a thread for each, and with forty all else."""
    return await parts.shared.ask("broker", parts.queue.is_up)


BrokerIsUpDep = Annotated[bool, Depends(_broker_is_up)]


# Some that probe ask for no body.
@router.head("/livez", operation_id="head_liveness", include_in_schema=False)
@router.get("/livez", operation_id="get_liveness")
async def livez() -> dict[str, str]:
    """Whether this process runs. It asks nobody else."""
    return {"status": "ok"}


@router.head("/readyz", operation_id="head_readiness", include_in_schema=False)
@router.get("/readyz", operation_id="get_readiness", responses={503: {"model": Readiness}})
async def readyz(parts: PartsDep, broker: BrokerIsUpDep, response: Response) -> Readiness:
    """Whether this process can serve: the database and the broker answer, and the schema is not an older one."""
    database = await parts.shared.ask("database", lambda: system.database(parts.sessions))
    ready = bool(database.migrated) and broker
    response.status_code = 200 if ready else 503
    return Readiness(
        status="ok" if ready else "unavailable", database=database.answers, migrated=database.migrated, broker=broker
    )


@router.get("/v1/system", operation_id="get_system", dependencies=[READER_ONLY], responses=problems())
def get_system(session: ReadSessionDep, broker: BrokerIsUpDep) -> System:
    """Workers and how much waits for them."""
    workers, depth = system.state(session)
    return System(
        version=VERSION,
        workers=[
            Worker(
                id=row.id,
                device=row.device,
                device_name=row.device_name,
                threads=row.threads,
                versions=row.versions,
                busy=row.job_id is not None,
                last_seen_at=row.last_seen_at,
                alive=alive,
            )
            for row, alive in workers
        ],
        queued=depth.queued,
        running=depth.running,
        oldest_queued_seconds=depth.oldest_queued_seconds,
        database=True,
        broker=broker,
    )
