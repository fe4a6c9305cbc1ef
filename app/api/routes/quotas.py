"""What the tenant may have, and has."""

from __future__ import annotations

from app.api import resources
from app.api.deps import PartsDep, ReaderDep, ReadSessionDep, make_router
from app.api.openapi import problems
from app.api.schemas import Quotas
from app.services.quotas import quotas

router = make_router(tags=["system"])


@router.get("/v1/quotas", operation_id="get_quotas", responses=problems())
def get_quotas(who: ReaderDep, session: ReadSessionDep, parts: PartsDep) -> Quotas:
    """The limits of your tenant, and how much of each is in use."""
    return resources.quotas(who.tenant, quotas(session, parts.rates, who.tenant, parts.settings.limits))
