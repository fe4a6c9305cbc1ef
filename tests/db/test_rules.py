"""What the database refuses whoever asks: a row that no lawful move could have made."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from app.contract.status import Status
from tests.db.conftest import Jobs


@pytest.mark.parametrize(
    ("status", "change", "rule"),
    [
        (Status.QUEUED, "status = 'asleep'", "status_known"),
        (Status.QUEUED, "status = 'running', lease_owner = 'w', attempt = 1", "lease_while_attempted"),
        (Status.RUNNING, "lease_owner = NULL", "owner_while_attempted"),
        (Status.RUNNING, "status = 'queued'", "while_attempted"),
        (Status.RUNNING, "attempt = 0", "attempt_counted"),
        (Status.QUEUED, "status = 'cancelled'", "finished_when_terminal|expires_when_terminal"),
        (Status.QUEUED, "finished_at = now()", "finished_when_terminal"),
        (Status.SUCCEEDED, "result = NULL", "result_when_succeeded"),
        (Status.CANCELLED, "result = '{}'", "result_when_succeeded"),
        (Status.FAILED, "error = NULL", "error_when_failed"),
        (Status.SUCCEEDED, "error = '{}'", "error_when_failed"),
        (Status.SUCCEEDED, "status = 'queued'", "finished_when_terminal|result_when_succeeded|expires_when_terminal"),
        (Status.CANCELLING, "cancel_deadline = NULL", "limit_while_cancelling"),
        (Status.RUNNING, "cancel_deadline = now()", "limit_while_cancelling"),
        (Status.RUNNING, "tidied_at = now()", "tidied_when_terminal"),
        (Status.RUNNING, "expires_at = now()", "expires_when_terminal"),
        (Status.SUCCEEDED, "expires_at = NULL", "expires_when_terminal"),
        (Status.RUNNING, "purged_at = now()", "purged_when_terminal"),
        (Status.SUCCEEDED, """checkpoints = '[{"name": "1-1.pt"}]'""", "checkpoints_of_use"),
    ],
)
def test_a_row_is_whole_in_every_state(made: Jobs, status: Status, change: str, rule: str) -> None:
    job_id = made.in_state(status)
    with made.sessions.begin() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))  # without the trigger, which asks first
        with pytest.raises(IntegrityError, match=rule):
            session.execute(text(f"UPDATE jobs SET {change} WHERE id = :id"), {"id": job_id})
        session.rollback()


@pytest.mark.parametrize("new", Status)
@pytest.mark.parametrize("old", Status)
def test_the_database_knows_the_same_moves_as_the_table(made: Jobs, old: Status, new: Status) -> None:
    job_id = made.in_state(old)
    refusal = ""
    try:
        with made.sessions.begin() as session:
            session.execute(text("UPDATE jobs SET status = :new WHERE id = :id"), {"id": job_id, "new": new})
    except IntegrityError as error:
        refusal = str(error)
    assert (f"a job that is {old} cannot become {new}" in refusal) == (old != new and not old.may_become(new))


@pytest.mark.parametrize("column", ["attempt", "revision", "events"])
def test_what_counts_up_never_counts_down(made: Jobs, column: str) -> None:
    job_id = made.in_state(Status.SUCCEEDED)
    with pytest.raises(IntegrityError, match="only grow"), made.sessions.begin() as session:
        session.execute(text(f"UPDATE jobs SET {column} = {column} - 1 WHERE id = :id"), {"id": job_id})


def test_a_job_ends_once(made: Jobs) -> None:
    job_id = made.in_state(Status.SUCCEEDED)
    with pytest.raises(IntegrityError, match="uq_job_events_terminal"), made.sessions.begin() as session:
        session.execute(
            text(
                "INSERT INTO job_events (job_id, seq, type, level, attempt, data)"
                " VALUES (:id, 99, 'cancelled', 'info', 1, '{}')"
            ),
            {"id": job_id},
        )


def test_what_belongs_to_a_job_goes_with_it(made: Jobs) -> None:
    job_id = made.in_state(Status.SUCCEEDED)
    with made.sessions.begin() as session:
        session.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": job_id})
    assert made.events(job_id) == []
