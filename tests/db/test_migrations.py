from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg import sql
from sqlalchemy import Connection, text

from app.contract.spec import parse_stored
from app.contract.status import Status
from app.db import jobs, metrics, migrate, session
from app.db.migrate import downgrade, upgrade
from app.db.models import REVISION, Base, JobRow
from app.db.session import make_engine, make_sessions
from app.services import system
from tests.db.conftest import Jobs
from tests.waiting import wait_until


@pytest.fixture
def empty(postgres: str) -> Iterator[Callable[[], str]]:
    """Makes databases with nothing in them, for SQLAlchemy."""
    made: list[str] = []

    def empty() -> str:
        name = f"empty_{uuid4().hex}"
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        made.append(name)
        url = postgres.replace("/secateur?", f"/{name}?", 1)
        return url.replace("postgresql://", "postgresql+psycopg://", 1)

    with psycopg.connect(postgres, autocommit=True) as connection:
        yield empty
        for name in made:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _catalogue(connection: Connection) -> set[tuple[str, str]]:
    """Every constraint and index, in PostgreSQL's own words; Alembic's comparison leaves conditions out. Triggers are
    the migrations' alone."""
    constraints = (
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace AND contype <> 't'"
    )
    indexes = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
    rows = [*connection.execute(text(constraints)), *connection.execute(text(indexes))]
    return {(name, definition) for name, definition in rows if "alembic" not in name}


def test_the_migrations_make_what_the_models_say(empty: Callable[[], str]) -> None:
    migrated, created = make_engine(empty()), make_engine(empty())
    upgrade(migrated.url.render_as_string(hide_password=False))
    Base.metadata.create_all(created)

    with migrated.connect() as here, created.connect() as there:
        context = MigrationContext.configure(here, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
        assert _catalogue(here) == _catalogue(there)
        assert len(_catalogue(here)) > 15
    migrated.dispose()
    created.dispose()


def test_a_migration_may_be_repeated(empty: Callable[[], str]) -> None:
    url = empty()
    upgrade(url)
    upgrade(url)


def test_a_schema_is_told_apart_from_an_older_one(empty: Callable[[], str]) -> None:
    url = empty()
    engine = make_engine(url)
    sessions = make_sessions(engine)
    told = [system.database(sessions)]
    upgrade(url)
    told.append(system.database(sessions))
    with sessions() as reading:
        assert reading.scalar(text("SELECT version_num FROM alembic_version")) == REVISION
    downgrade(url, "-1")
    told.append(system.database(sessions))
    engine.dispose()

    assert [(each.answers, each.migrated) for each in told] == [(True, False), (True, True), (True, False)]


def test_a_migration_waits_for_its_turn_however_long_another_takes(
    empty: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(session._SERVER_SIDE, "lock_timeout", "100ms")
    monkeypatch.setitem(session._SERVER_SIDE, "statement_timeout", "200ms")
    url = empty()
    engine = make_engine(url)
    lock, waits = "SELECT pg_advisory_xact_lock(:key)", "wait_event = 'advisory' AND now() - query_start > '0.4 s'"
    waiting = text(f"SELECT count(*) FROM pg_stat_activity WHERE {waits}")
    with (
        ThreadPoolExecutor(1) as pool,
        engine.connect() as other,
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher,
    ):
        other.execute(text(lock), {"key": migrate._LOCK})
        second = pool.submit(upgrade, url)
        wait_until(lambda: second.done() or watcher.scalar(waiting), timeout=20, what="it waits beyond all limits")
        other.rollback()
        second.result(timeout=60)
    engine.dispose()


def test_going_back_leaves_one_end_of_each_log_and_none_of_a_job_that_runs_again(empty: Callable[[], str]) -> None:
    url = empty()
    upgrade(url)
    engine = make_engine(url)
    made = Jobs(make_sessions(engine))
    ended, again = made.in_state(Status.FAILED), made.in_state(Status.FAILED)
    with made.sessions.begin() as session:
        for job_id in (ended, again):
            assert jobs.retry(session, job_id, "default")
    with made.sessions.begin() as session:
        assert jobs.request_cancel(session, ended, "default")

    downgrade(url, "0001")

    with engine.connect() as connection:
        query = "SELECT type FROM job_events WHERE job_id = :id AND type IN ('failed', 'cancelled')"
        ends = {job_id: connection.scalars(text(query), {"id": job_id}).all() for job_id in (ended, again)}
    assert ends == {ended: ["cancelled"], again: []}
    upgrade(url)
    engine.dispose()


def test_jobs_that_were_there_before_they_were_counted_are_counted_too(empty: Callable[[], str]) -> None:
    url = empty()
    upgrade(url)
    engine = make_engine(url)
    made = Jobs(make_sessions(engine))
    for status in (Status.QUEUED, Status.FAILED, Status.FAILED):
        made.in_state(status)
    downgrade(url, "0006")
    upgrade(url)
    with made.sessions() as session:
        found = {(total.metric, total.status, total.reason): total.count for total in metrics.totals(session)}
    assert found == {("submitted", "", ""): 3, ("finished", "failed", "internal_error"): 2}
    engine.dispose()


def test_going_back_cancels_sweeps_that_wait_and_leaves_their_members(empty: Callable[[], str]) -> None:
    url = empty()
    upgrade(url)
    engine = make_engine(url)
    made = Jobs(make_sessions(engine))
    sweep = made.sweep()
    downgrade(url, "0007")
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id, status FROM jobs"))
        found: dict[str, str] = {row.id: row.status for row in rows}
    assert found == {sweep.id: "cancelled"} | dict.fromkeys(sweep.members, "queued")
    upgrade(url)
    assert made.events(sweep.id) == ["waiting", "cancelled"]
    engine.dispose()


def test_names_that_no_spec_may_hold_any_more_are_mended(empty: Callable[[], str]) -> None:
    url = empty()
    upgrade(url)
    engine = make_engine(url)
    made = Jobs(make_sessions(engine))
    job_id = made.in_state(Status.FAILED)
    downgrade(url, "0011")
    turned = {"display_name": "\u202ea", "labels": {"b": "c\u2066"}}
    with engine.begin() as connection:
        new = (
            "UPDATE jobs SET display_name = :name, labels = CAST(:labels AS jsonb), spec = spec || CAST(:spec AS jsonb)"
        )
        values = {"name": turned["display_name"], "labels": json.dumps(turned["labels"]), "spec": json.dumps(turned)}
        connection.execute(text(new), values)
    upgrade(url)
    with made.sessions() as session:
        row = session.get_one(JobRow, job_id)
        spec = parse_stored(row.spec)
    assert (row.display_name, row.labels) == (spec.display_name, spec.labels) == ("\ufffda", {"b": "c\ufffd"})
    engine.dispose()


def test_processes_that_start_together_take_turns(empty: Callable[[], str]) -> None:
    url = empty()
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(upgrade, url) for _ in range(4)]:
            future.result(timeout=60)
    engine = make_engine(url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM alembic_version")) == 1
    engine.dispose()
