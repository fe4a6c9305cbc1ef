"""Who is told of what, and that a delivery is written with its event or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker

from app.contract.status import Status
from app.contract.webhooks import JobEventType, NewWebhook
from app.db import attempts, jobs, sweep
from app.db import webhooks as queries
from app.db.models import DeliveryRow
from app.services import webhooks
from tests.db.conftest import FILE, Jobs

ALL = tuple(JobEventType)


def _webhook(
    sessions: sessionmaker[Session], *, tenant: str = "default", events: tuple[JobEventType, ...] = ALL
) -> str:
    with sessions.begin() as session:
        new = NewWebhook(url="https://hook.example/", events=events)
        return webhooks.create(session, tenant, new, allow_private=False).id


def _told(sessions: sessionmaker[Session], webhook_id: str) -> list[dict[str, Any]]:
    """The payloads, oldest first."""
    query = select(DeliveryRow.payload).where(DeliveryRow.webhook_id == webhook_id)
    with sessions() as session:
        return [json.loads(payload) for payload in session.scalars(query.order_by(DeliveryRow.created_at))]


def _types(sessions: sessionmaker[Session], webhook_id: str) -> list[str]:
    return [event["type"] for event in _told(sessions, webhook_id)]


@pytest.mark.parametrize(
    ("status", "types"),
    [
        (Status.QUEUED, []),
        (Status.RUNNING, ["job.started"]),
        (Status.CANCELLING, ["job.started"]),
        (Status.SUCCEEDED, ["job.started", "job.succeeded"]),
        (Status.FAILED, ["job.started", "job.failed"]),
        (Status.CANCELLED, ["job.started", "job.cancelled"]),
    ],
)
def test_each_turn_of_a_job_is_told(made: Jobs, status: Status, types: list[str]) -> None:
    webhook_id = _webhook(made.sessions)

    job_id = made.in_state(status)

    events = _told(made.sessions, webhook_id)
    assert [event["type"] for event in events] == types
    assert all(event["data"]["job_id"] == job_id for event in events)
    if status.is_terminal:
        assert events[-1]["data"]["status"] == status


def test_of_a_member_its_sweep_is_told(made: Jobs) -> None:
    webhook_id = _webhook(made.sessions)
    sweep = made.sweep()
    made.running(sweep.members[0])
    made.running(made.queued())
    with made.sessions.begin() as session:
        jobs.request_cancel(session, sweep.id, "default")
    told = [event["data"] for event in _told(made.sessions, webhook_id)]
    assert [data.get("sweep_id") for data in told] == [sweep.id, None, None]
    assert [data["kind"] for data in told] == ["train", "train", "sweep"]


def test_an_end_that_the_sweeper_makes_is_told_with_its_reason(made: Jobs) -> None:
    webhook_id = _webhook(made.sessions, events=(JobEventType.FAILED, JobEventType.CANCELLED))
    made.past(made.queued(), "queue_deadline")
    made.past(made.running(), "lease_expires_at")
    cancelling = made.in_state(Status.CANCELLING)
    made.past(cancelling, "cancel_deadline")

    with made.sessions.begin() as session:
        sweep.sweep(session, max_attempts=1)

    told = {(event["type"], event["data"].get("error_code")) for event in _told(made.sessions, webhook_id)}
    assert told == {("job.failed", "queue_timeout"), ("job.failed", "worker_lost"), ("job.cancelled", None)}


def test_what_is_rolled_back_is_not_told(made: Jobs) -> None:
    webhook_id = _webhook(made.sessions)
    job_id = made.queued()
    with made.sessions() as session:
        jobs.request_cancel(session, job_id, "default")
        assert session.scalars(select(DeliveryRow.event)).all() == ["job.cancelled"]
        session.rollback()

    assert made.row(job_id).status == "queued"
    assert _told(made.sessions, webhook_id) == []


def test_only_who_asks_is_told(made: Jobs) -> None:
    asks = _webhook(made.sessions, events=(JobEventType.SUCCEEDED,))
    asks_too = _webhook(made.sessions, events=(JobEventType.FAILED, JobEventType.SUCCEEDED))
    asks_for_others = _webhook(made.sessions, events=(JobEventType.FAILED,))
    stranger = _webhook(made.sessions, tenant="stranger")
    disabled = _webhook(made.sessions)
    with made.sessions.begin() as session:
        webhooks.change(session, "default", disabled, webhooks.parse_patch(b'{"enabled": false}'), allow_private=False)

    made.in_state(Status.SUCCEEDED)

    told = {each: _types(made.sessions, each) for each in (asks, asks_too, asks_for_others, stranger, disabled)}
    success = ["job.succeeded"]
    assert told == {asks: success, asks_too: success, asks_for_others: [], stranger: [], disabled: []}


def test_a_job_does_not_wait_for_a_webhook_that_is_being_changed_or_deleted(made: Jobs) -> None:
    deleted, changed = _webhook(made.sessions), _webhook(made.sessions)
    job_id = made.running()
    with made.sessions.begin() as busy:
        webhooks.delete(busy, "default", deleted)
        webhooks.rotate(busy, "default", changed)
        with made.sessions.begin() as session:
            session.execute(text("SET LOCAL lock_timeout = '500ms'"))
            attempts.succeed(session, job_id, 1, result={"kind": "train"}, files=[FILE])

    assert _types(made.sessions, deleted) == []
    assert _types(made.sessions, changed) == ["job.started", "job.succeeded"]


def test_old_deliveries_that_somebody_is_at_are_passed_over(made: Jobs) -> None:
    webhook_id = _webhook(made.sessions)
    made.in_state(Status.SUCCEEDED)
    with made.sessions.begin() as session:
        session.execute(text("UPDATE webhook_deliveries SET created_at = now() - interval '31 days'"))
    with made.sessions.begin() as session, made.sessions.begin() as other:
        session.execute(text("SELECT 1 FROM webhook_deliveries WHERE event = 'job.started' FOR UPDATE"))
        other.execute(text("SET LOCAL lock_timeout = '1s'"))
        queries.forget(other)

    assert _types(made.sessions, webhook_id) == ["job.started"]


def test_old_deliveries_and_secrets_that_sign_no_longer_are_forgotten(made: Jobs) -> None:
    webhook_id = _webhook(made.sessions)
    with made.sessions.begin() as session:
        webhooks.rotate(session, "default", webhook_id)
    made.in_state(Status.SUCCEEDED)
    with made.sessions.begin() as session:
        session.execute(
            text("UPDATE webhook_deliveries SET created_at = now() - interval '31 days' WHERE event = 'job.started'")
        )
        queries.forget(session)
        assert webhooks.get(session, "default", webhook_id).previous_secret is not None
        session.execute(text("UPDATE webhooks SET previous_secret_expires_at = now() - interval '1 second'"))
        queries.forget(session)

    assert _types(made.sessions, webhook_id) == ["job.succeeded"]
    with made.sessions() as session:
        assert webhooks.get(session, "default", webhook_id).previous_secret is None
