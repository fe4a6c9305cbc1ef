"""Any order of moves by clients, attempts, crashes and sweepers: never outside the table, and one end for each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, Engine, Row, text
from sqlalchemy.orm import Session, sessionmaker

from app.contract.status import Phase, Status
from app.db import attempts, jobs, members, sweep
from app.db.attempts import Checkpoint
from app.db.moves import NewEvent
from tests.db.conftest import FAILURE, FILE, Jobs

MAX_ATTEMPTS = 3
# All jobs at once, and of each no more than is looked at: the looks are most of the work here, the moves are few.
_LOOK = text("""
    SELECT id, status, events, attempt, retries, crashes, sources,
        ARRAY(SELECT seq FROM job_events WHERE job_id = jobs.id ORDER BY seq) AS seqs,
        ARRAY(SELECT type FROM job_events WHERE job_id = jobs.id ORDER BY seq) AS types,
        ARRAY(SELECT retry FROM job_events WHERE job_id = jobs.id ORDER BY seq) AS of_retries,
        EXISTS (SELECT FROM job_artifacts WHERE job_id = jobs.id) AS is_published
    FROM jobs
""")

DEADLINES = ["lease_expires_at", "queue_deadline", "runtime_deadline", "cancel_deadline"]


class Lives(RuleBasedStateMachine):
    """A few jobs, the attempts that ever had one of them, and whoever moves them."""

    sessions: sessionmaker[Session]
    looking: Connection

    ids = Bundle("ids")
    held = Bundle("held")
    """(job, attempt): the attempt may have been fenced long ago."""

    def __init__(self) -> None:
        super().__init__()
        self.made = Jobs(self.sessions)
        self.known: dict[str, Status] = {}
        self.looking.execute(text("TRUNCATE jobs CASCADE"))  # of the run before: sweepers would go through them, too

    @contextmanager
    def moving(self) -> Iterator[Session]:
        """One move of each job at most: more would have to be looked at one by one."""
        with self.sessions.begin() as session:
            yield session

    def _look(self) -> Mapping[str, Row[Any]]:
        rows = {row.id: row for row in self.looking.execute(_LOOK)}
        for job_id, before in self.known.items():
            now = Status(rows[job_id].status)
            assert now == before or before.may_become(now)
            self.known[job_id] = now
        return rows

    @rule(target=ids)
    def submit(self) -> str:
        job_id = self.made.queued()
        self.known[job_id] = Status.QUEUED
        return job_id

    @rule(target=ids)
    def submit_sweep(self) -> object:
        made = self.made.sweep()
        self.known |= {made.id: Status.WAITING} | dict.fromkeys(made.members, Status.QUEUED)
        return multiple(made.id, *made.members)

    @rule(target=held, job_id=ids)
    def claim(self, job_id: str) -> object:
        with self.moving() as session:
            claim = attempts.claim(session, job_id, owner="w/1", lease_seconds=60)
        return (job_id, claim.attempt) if claim else multiple()

    @rule(attempt=held, step=st.integers(1, 9))
    def beat(self, attempt: tuple[str, int], step: int) -> None:
        job_id, number = attempt
        was_last = self._owns(job_id, number)
        with self.moving() as session:
            status = attempts.beat(
                session,
                job_id,
                number,
                lease_seconds=60,
                phase=Phase.TRAINING,
                progress={"completed": step},
                checkpoints=[Checkpoint(f"{number}-{step}.pt", "0" * 64)],
                new_events=[NewEvent("epoch", {"epoch": step})],
            )
        assert (status is not None) == was_last

    @rule(attempt=consumes(held), end=st.sampled_from(["succeed", "fail", "cancelled", "drain"]))
    def finish(self, attempt: tuple[str, int], end: str) -> None:
        job_id, number = attempt
        was_last = self._owns(job_id, number)
        with self.moving() as session:
            if end == "succeed":
                status = attempts.succeed(session, job_id, number, result={"kind": "train"}, files=[FILE])
            elif end == "fail":
                status = attempts.fail(session, job_id, number, failure=FAILURE)
            elif end == "cancelled":
                status = attempts.cancelled(session, job_id, number)
            else:
                status = attempts.drain(session, job_id, number)
        assert was_last or status is None

    def _owns(self, job_id: str, number: int) -> bool:
        row = self.made.row(job_id)
        return row.attempt == number and Status(row.status).is_leased

    @rule(job_id=ids)
    def cancel(self, job_id: str) -> None:
        with self.moving() as session:
            jobs.request_cancel(session, job_id, "default")

    @rule(job_id=ids)
    def retry(self, job_id: str) -> None:
        with self.moving() as session:
            jobs.retry(session, job_id, "default")

    @rule(job_id=ids, deadline=st.sampled_from(DEADLINES))
    def time_passes(self, job_id: str, deadline: str) -> None:
        if getattr(self.made.row(job_id), deadline) is not None:
            self.made.past(job_id, deadline)

    @rule()
    def job_process_is_lost(self) -> None:
        with self.moving() as session:
            attempts.expire_leases(session, "w/")

    @rule()
    def sweep(self) -> None:
        with self.moving() as session:
            sweep.sweep(session, max_attempts=MAX_ATTEMPTS)

    @rule()
    def settle_sweeps(self) -> None:
        with self.moving() as session:
            members.cancel_overdue(session)
        rows = self._look()
        with self.sessions() as session:
            found = members.unsettled(session)
        for sweep_id in found:
            with self.moving() as session:
                members.settle(session, sweep_id)
            rows = self._look()
        for job_id in [each for each, status in self.known.items() if status is Status.WAITING]:
            assert not all(self.known[each].is_terminal for each in rows[job_id].sources)

    @rule(job_id=ids)
    def retry_sweep(self, job_id: str) -> None:
        if self.made.row(job_id).kind == "sweep":
            with self.moving() as session:
                members.retry_sweep(session, job_id, "default")

    @rule()
    def publish_and_tidy(self) -> None:
        with self.moving() as session:
            sweep.due_messages(session)
            sweep.tidied(session, [ended.job_id for ended in sweep.untidied(session)])

    @invariant()
    def logs_are_whole_and_rows_agree_with_them(self) -> None:
        rows = self._look()
        for job_id, status in self.known.items():
            row = rows[job_id]
            log = list(zip(row.types, row.of_retries, strict=True))
            assert row.seqs == list(range(1, row.events + 1))
            ends = [retry for type_, retry in log if type_ in list(Status) and Status(type_).is_terminal]
            assert ends == sorted(set(ends))
            assert len(ends) == row.retries + status.is_terminal
            assert row.types.count(Status.RUNNING) == row.attempt
            assert row.is_published == (status is Status.SUCCEEDED)
            assert row.crashes < MAX_ATTEMPTS


@pytest.fixture
def lives(sessions: sessionmaker[Session]) -> Iterator[type[Lives]]:
    class Here(Lives):
        pass

    engine = sessions.kw["bind"]
    assert isinstance(engine, Engine)
    # A look is one statement, without a transaction around it.
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as looking:
        Here.sessions, Here.looking = sessions, looking
        yield Here


def test_no_order_of_moves_leads_astray(lives: type[Lives]) -> None:
    run_state_machine_as_test(
        lives,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


@pytest.mark.parametrize("broken", ["UPDATE jobs SET events = events + 1", "UPDATE jobs SET attempt = attempt + 1"])
def test_the_machine_notices_a_row_that_disagrees_with_its_log(lives: type[Lives], broken: str) -> None:
    machine = lives()
    machine.submit()
    machine.logs_are_whole_and_rows_agree_with_them()
    with machine.sessions.begin() as session:
        session.execute(text(broken))
    with pytest.raises(AssertionError):
        machine.logs_are_whole_and_rows_agree_with_them()
