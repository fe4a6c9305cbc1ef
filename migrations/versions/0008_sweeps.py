"""sweeps: jobs that wait for others, their members"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

TERMINAL = "('succeeded', 'failed', 'cancelled')"

# A copy of app.contract.status.TRANSITIONS as of this revision; a test holds the two together.
MOVES = {
    "waiting": ("queued", "cancelled"),
    "queued": ("running", "cancelled", "failed"),
    "running": ("queued", "cancelling", "succeeded", "failed"),
    "cancelling": ("cancelled",),
    "failed": ("queued", "waiting"),
}
MOVES_BEFORE = {
    "queued": ("running", "cancelled", "failed"),
    "running": ("queued", "cancelling", "succeeded", "failed"),
    "cancelling": ("cancelled",),
    "failed": ("queued",),
}


def _refuse(moves: Mapping[str, tuple[str, ...]]) -> str:
    lawful = ", ".join(f"('{old}', '{new}')" for old, wanted in moves.items() for new in wanted)
    return f"""
CREATE OR REPLACE FUNCTION refuse_unlawful_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status <> OLD.status AND (OLD.status, NEW.status) NOT IN ({lawful}) THEN
        RAISE EXCEPTION 'a job that is % cannot become %', OLD.status, NEW.status USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.attempt < OLD.attempt OR NEW.revision < OLD.revision OR NEW.events < OLD.events THEN
        RAISE EXCEPTION 'attempt, revision and events only grow' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$
"""


def _tally(requeued: str, ran: str) -> str:
    """`requeued` and `ran` are conditions: that a job came back into the queue, and that one that ends has run."""
    return f"""
CREATE OR REPLACE FUNCTION tally_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO job_tallies (metric, kind) VALUES ('submitted', NEW.kind);
        RETURN NULL;
    END IF;
    IF NEW.purged_at IS NOT NULL AND OLD.purged_at IS NULL THEN
        INSERT INTO job_tallies (metric, kind, status) VALUES ('purged', NEW.kind, NEW.status);
    END IF;
    IF NEW.status = OLD.status THEN
        RETURN NULL;
    END IF;
    IF NEW.status = 'running' THEN
        PERFORM tally_duration('queue_wait', NEW.kind, OLD.queued_at);
    ELSIF {requeued} THEN
        INSERT INTO job_tallies (metric, kind, reason) VALUES ('requeued', NEW.kind, CASE
            WHEN OLD.status = 'failed' THEN 'retry'
            WHEN NEW.crashes > OLD.crashes THEN 'lease_expired'
            ELSE 'worker_shutdown' END);
    ELSIF NEW.status IN {TERMINAL} THEN
        INSERT INTO job_tallies (metric, kind, status, reason)
        VALUES ('finished', NEW.kind, NEW.status, COALESCE(NEW.error ->> 'code', ''));
        IF {ran} THEN
            -- The log has when the last attempt began; `started_at` is the first one's, which may be days before.
            PERFORM tally_duration('run', NEW.kind, (
                SELECT at FROM job_events WHERE job_id = NEW.id AND type = 'running' ORDER BY seq DESC LIMIT 1
            ));
        END IF;
    END IF;
    RETURN NULL;
END $$
"""  # noqa: S608 - conditions and TERMINAL are of this file


# A sweep whose members have ended comes into the queue for the first time, unless a client has asked for a retry.
TALLY = _tally(
    "NEW.status IN ('queued', 'waiting') AND OLD.status <> 'waiting'", "OLD.status NOT IN ('queued', 'waiting')"
)
TALLY_BEFORE = _tally("NEW.status = 'queued'", "OLD.status <> 'queued'")

# No older release knows what it would wait for. Its members are jobs as any.
CANCEL_SWEEPS = """
UPDATE jobs SET status = 'cancelled', phase = NULL, finished_at = now(), events = events + 1, revision = revision + 1,
    expires_at = now() + make_interval(secs => retention_seconds) WHERE status = 'waiting'
"""
TELL_OF_CANCELS = """
INSERT INTO job_events (job_id, seq, type, level, attempt, retry, data)
SELECT id, events + 1, 'cancelled', 'info', attempt, retries, '{}' FROM jobs WHERE status = 'waiting'
"""

STATUS_KNOWN = "ck_jobs_status_known"
STATES = ("queued", "running", "cancelling", "succeeded", "failed", "cancelled")


def upgrade() -> None:
    op.add_column(
        "jobs", sa.Column("sweep_id", sa.Text(), nullable=True, comment="The sweep that this job is a member of.")
    )
    op.alter_column("jobs", "sources", comment="The jobs whose files it reads; of a sweep its members, in their order.")
    op.alter_column("jobs", "queue_deadline", comment="While a sweep waits, for its members' ends.")
    _know("waiting", *STATES)
    op.create_check_constraint(op.f("ck_jobs_sweeps_wait"), "jobs", "status <> 'waiting' OR kind = 'sweep'")
    op.create_check_constraint(op.f("ck_jobs_no_sweeps_of_sweeps"), "jobs", "sweep_id IS NULL OR kind <> 'sweep'")
    op.create_index("ix_jobs_sweep", "jobs", ["sweep_id"], postgresql_where=sa.text("sweep_id IS NOT NULL"))
    op.create_index("ix_jobs_waiting", "jobs", ["queue_deadline"], postgresql_where=sa.text("status = 'waiting'"))
    op.execute(_refuse(MOVES))
    op.execute(TALLY)


def downgrade() -> None:
    op.execute(TELL_OF_CANCELS)
    op.execute(CANCEL_SWEEPS)
    op.execute(TALLY_BEFORE)
    op.execute(_refuse(MOVES_BEFORE))
    op.drop_index("ix_jobs_waiting", table_name="jobs")
    op.drop_index("ix_jobs_sweep", table_name="jobs")
    op.drop_constraint(op.f("ck_jobs_no_sweeps_of_sweeps"), "jobs", type_="check")
    op.drop_constraint(op.f("ck_jobs_sweeps_wait"), "jobs", type_="check")
    _know(*STATES)
    op.alter_column("jobs", "queue_deadline", comment=None)
    op.alter_column("jobs", "sources", comment="The jobs whose files it reads.")
    op.drop_column("jobs", "sweep_id")


def _know(*states: str) -> None:
    op.drop_constraint(op.f(STATUS_KNOWN), "jobs", type_="check")
    known = ", ".join(f"'{state}'" for state in states)
    op.create_check_constraint(op.f(STATUS_KNOWN), "jobs", f"status IN ({known})")
