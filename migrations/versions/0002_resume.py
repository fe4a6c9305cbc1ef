"""checkpoints, retries, a limit on cancelling, tidying, and a trigger that refuses unlawful moves"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

TERMINAL = "('succeeded', 'failed', 'cancelled')"

# A copy of app.contract.status.TRANSITIONS as of this revision; a test holds the two together.
MOVES = {
    "queued": ("running", "cancelled", "failed"),
    "running": ("queued", "cancelling", "succeeded", "failed"),
    "cancelling": ("cancelled",),
    "failed": ("queued",),
}
LAWFUL = ", ".join(f"('{old}', '{new}')" for old, wanted in MOVES.items() for new in wanted)

REFUSE = f"""
CREATE FUNCTION refuse_unlawful_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status <> OLD.status AND (OLD.status, NEW.status) NOT IN ({LAWFUL}) THEN
        RAISE EXCEPTION 'a job that is % cannot become %', OLD.status, NEW.status USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.attempt < OLD.attempt OR NEW.revision < OLD.revision OR NEW.events < OLD.events THEN
        RAISE EXCEPTION 'attempt, revision and events only grow' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$
"""

# The older log has room for one end: the last, once the job has come to it.
FORGET_EARLIER_ENDS = f"""
UPDATE job_events AS earlier SET type = 'requeued' FROM jobs
WHERE jobs.id = earlier.job_id AND earlier.type IN {TERMINAL} AND (
    jobs.status NOT IN {TERMINAL} OR EXISTS (
        SELECT FROM job_events AS later
        WHERE later.job_id = earlier.job_id AND later.seq > earlier.seq AND later.type IN {TERMINAL}
    )
)
"""  # noqa: S608 - TERMINAL is a constant of this file


def upgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column(
            "retries",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="Times that a client asked for it again.",
        ),
    )
    op.add_column("jobs", sa.Column("cancel_deadline", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "jobs",
        sa.Column(
            "checkpoints",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default="[]",
            nullable=False,
            comment="Newest first.",
        ),
    )
    op.add_column(
        "jobs",
        sa.Column(
            "tidied_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When the files of losing attempts were removed.",
        ),
    )
    op.execute("UPDATE jobs SET cancel_deadline = now() + interval '30 seconds' WHERE status = 'cancelling'")
    op.create_check_constraint(
        "limit_while_cancelling", "jobs", "(status = 'cancelling') = (cancel_deadline IS NOT NULL)"
    )
    op.create_check_constraint(
        "checkpoints_of_use", "jobs", "status NOT IN ('succeeded', 'cancelled') OR checkpoints = '[]'"
    )
    op.create_check_constraint("tidied_when_terminal", "jobs", f"tidied_at IS NULL OR status IN {TERMINAL}")
    op.create_index(
        "ix_jobs_untidied",
        "jobs",
        ["queued_at"],
        postgresql_where=sa.text(f"status IN {TERMINAL} AND tidied_at IS NULL"),
    )
    op.add_column("job_events", sa.Column("retry", sa.Integer(), server_default="0", nullable=False))
    op.drop_index("uq_job_events_terminal", table_name="job_events")
    _index_ends("job_id", "retry")
    op.execute(REFUSE)
    op.execute(
        "CREATE TRIGGER refuse_unlawful_move BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION refuse_unlawful_move()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER refuse_unlawful_move ON jobs")
    op.execute("DROP FUNCTION refuse_unlawful_move")
    op.drop_index("uq_job_events_terminal", table_name="job_events")
    op.drop_column("job_events", "retry")
    op.execute(FORGET_EARLIER_ENDS)
    _index_ends("job_id")
    op.drop_index("ix_jobs_untidied", table_name="jobs")
    for name in ("limit_while_cancelling", "checkpoints_of_use", "tidied_when_terminal"):
        op.drop_constraint(op.f(f"ck_jobs_{name}"), "jobs")
    for column in ("tidied_at", "checkpoints", "cancel_deadline", "retries"):
        op.drop_column("jobs", column)


def _index_ends(*columns: str) -> None:
    ends = sa.text(f"type IN {TERMINAL}")
    op.create_index("uq_job_events_terminal", "job_events", list(columns), unique=True, postgresql_where=ends)
