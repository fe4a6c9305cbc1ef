from __future__ import annotations

from sqlalchemy import text

from app.contract.status import Status
from app.db import jobs
from app.db.jobs import Filter, Position
from tests.db.conftest import Jobs


def _pages(made: Jobs, limit: int, tenant: str = "default") -> list[str]:
    found: list[str] = []
    after = None
    with made.sessions() as session:
        while rows := jobs.page(session, tenant, after=after, limit=limit):
            found += [row.id for row in rows]
            after = Position(rows[-1].created_at, rows[-1].id)
    return found


def test_pages_of_any_size_hold_every_job_once_the_newest_first(made: Jobs) -> None:
    ids = [made.queued() for _ in range(7)]
    made.queued(tenant="other")
    for limit in (1, 2, 3, 7, 8):
        assert _pages(made, limit) == ids[::-1]


def test_jobs_of_one_instant_are_neither_lost_nor_repeated(made: Jobs) -> None:
    ids = [made.queued() for _ in range(5)]
    with made.sessions.begin() as session:
        session.execute(text("UPDATE jobs SET created_at = '2026-01-01T00:00:00Z'"))
    assert _pages(made, 2) == sorted(ids, reverse=True)


def test_a_job_that_comes_meanwhile_moves_no_page(made: Jobs) -> None:
    ids = [made.queued() for _ in range(4)]
    with made.sessions() as session:
        first = jobs.page(session, "default", limit=2)
        made.queued()
        second = jobs.page(session, "default", after=Position(first[-1].created_at, first[-1].id), limit=2)
    assert [row.id for row in (*first, *second)] == ids[::-1]


def test_filters_join(made: Jobs) -> None:
    queued, running = made.queued(), made.running()
    made.in_state(Status.SUCCEEDED)
    with made.sessions() as session:
        both = jobs.page(session, "default", Filter(statuses=("queued", "running"), kinds=("train",)), limit=10)
        none = jobs.page(session, "default", Filter(statuses=("queued",), kinds=("prune",)), limit=10)
    assert {row.id for row in both} == {queued, running}
    assert none == []
