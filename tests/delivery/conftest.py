from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from app.contract.webhooks import JobEventType, NewWebhook
from app.db.models import DeliveryRow, WebhookRow
from app.services import webhooks
from tests.db.conftest import Jobs
from tests.endpoint import Endpoint, endpoint


class Hooks:
    """Webhooks of a database and their deliveries, whose times can be moved as only the clock could."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self.sessions = sessions

    def make(self, url: str, *, tenant: str = "default", events: Sequence[JobEventType] = tuple(JobEventType)) -> str:
        with self.sessions.begin() as session:
            new = NewWebhook(url=url, events=tuple(events))
            return webhooks.create(session, tenant, new, allow_private=True).id

    def tested(self, webhook_id: str, count: int = 1) -> list[str]:
        """The ids of so many tests of it, which are due."""
        with self.sessions.begin() as session:
            return [webhooks.test(session, "default", webhook_id).id for _ in range(count)]

    def row(self, webhook_id: str) -> WebhookRow:
        with self.sessions() as session:
            return session.get_one(WebhookRow, webhook_id)

    def deliveries(self, webhook_id: str) -> Sequence[DeliveryRow]:
        """Oldest first."""
        with self.sessions() as session:
            page = webhooks.deliveries(session, self.row(webhook_id).tenant, webhook_id, cursor=None, limit=100)
            return page.items[::-1]

    def execute(self, statement: str, **values: Any) -> None:
        with self.sessions.begin() as session:
            session.execute(text(statement), values)

    def let_be_due(self) -> None:
        """What waits, waits no longer: leases too have run out."""
        self.execute(
            "UPDATE webhook_deliveries SET next_attempt_at = now() - interval '1 second' WHERE status = 'pending'"
        )


@pytest.fixture
def hooks(sessions: sessionmaker[Session]) -> Hooks:
    return Hooks(sessions)


@pytest.fixture
def made(sessions: sessionmaker[Session]) -> Jobs:
    return Jobs(sessions)


@pytest.fixture
def receiver() -> Iterator[Endpoint]:
    with endpoint() as running:
        yield running
