"""What webhooks are to be told: rows that the transaction of the event itself writes, so that neither is without the
other. Nothing here commits, or sends.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import Row, and_, insert, select
from sqlalchemy.orm import Session

from app.contract.webhooks import OF_STATUS, TEST, JobEvent, JobEventData, JobEventType, WebhookTest, WebhookTestData
from app.core.ids import new_id
from app.db.clock import now
from app.db.models import DeliveryRow, JobRow, WebhookRow

_Asked: TypeAlias = Row[str, str, str, str | None, str | None, datetime]
"""A webhook's id, and of its job the kind, the status, the failure's code and the sweep; and when it was asked."""


def tell(session: Session, job_id: str, event_types: Iterable[str]) -> None:
    """Write a delivery to each webhook that asks for one of these events, as the job's log names them."""
    for wanted in [OF_STATUS[event_type] for event_type in event_types if event_type in OF_STATUS]:
        if rows := _who_asks(session, job_id, wanted):
            session.execute(insert(DeliveryRow), [_delivery(row, job_id, wanted) for row in rows])


def _who_asks(session: Session, job_id: str, wanted: JobEventType) -> list[_Asked]:
    asks = and_(
        WebhookRow.tenant == JobRow.tenant,
        WebhookRow.disabled_reason.is_(None),
        WebhookRow.events.contains([wanted]),
    )
    query = (
        select(WebhookRow.id, JobRow.kind, JobRow.status, JobRow.error["code"].as_string(), JobRow.sweep_id, now())
        .join(JobRow, asks)
        .where(JobRow.id == job_id)
    )
    # What is just now being deleted is passed over: the job waits for nobody, nor fails for want of a foreign key.
    return list(session.execute(query.with_for_update(key_share=True, read=True, skip_locked=True, of=WebhookRow)))


def _delivery(row: _Asked, job_id: str, event_type: JobEventType) -> dict[str, Any]:
    webhook_id, kind, status, error_code, sweep_id, at = row
    known = {"job_id": job_id, "kind": kind, "status": status, "error_code": error_code, "sweep_id": sweep_id}
    data = known | {"href": f"/v1/jobs/{job_id}"}
    event = JobEvent(type=event_type, timestamp=at, data=JobEventData.model_validate(data))
    return _values(webhook_id, event, job_id)


def tell_test(session: Session, webhook_id: str) -> DeliveryRow:
    """The delivery that a client asks for, to see one arrive."""
    at = session.scalars(select(now())).one()
    event = WebhookTest(type=TEST, timestamp=at, data=WebhookTestData(webhook_id=webhook_id))
    return session.scalars(insert(DeliveryRow).values(_values(webhook_id, event, None)).returning(DeliveryRow)).one()


def _values(webhook_id: str, event: JobEvent | WebhookTest, job_id: str | None) -> dict[str, Any]:
    return {
        "id": new_id("msg"),
        "webhook_id": webhook_id,
        "event": event.type,
        "job_id": job_id,
        "payload": event.model_dump_json(exclude_none=True),
    }
