"""tallies of what happens to jobs, for /metrics, and the trace that a job belongs to"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

TERMINAL = "('succeeded', 'failed', 'cancelled')"

# A copy of app.db.metrics.BOUNDS as of this revision; a test holds the two together.
BOUNDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 10800, 43200, 86400)

# Bounds are upper ones and belong to their bucket, as Prometheus has it.
TALLY_DURATION = f"""
CREATE FUNCTION tally_duration(metric text, kind text, began timestamptz) RETURNS void LANGUAGE sql AS $$
    INSERT INTO job_tallies (metric, kind, le, microseconds)
    SELECT metric, kind, COALESCE(min(bound) FILTER (WHERE took <= bound), 'Infinity'), round(took * 1000000)
    FROM greatest(extract(epoch FROM clock_timestamp() - began), 0) AS took,
        unnest(ARRAY[{", ".join(map(str, BOUNDS))}]::float8[]) AS bound
    GROUP BY took
$$
"""  # noqa: S608 - BOUNDS is a constant of this file

TALLY = f"""
CREATE FUNCTION tally_job() RETURNS trigger LANGUAGE plpgsql AS $$
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
    ELSIF NEW.status = 'queued' THEN
        INSERT INTO job_tallies (metric, kind, reason) VALUES ('requeued', NEW.kind, CASE
            WHEN OLD.status = 'failed' THEN 'retry'
            WHEN NEW.crashes > OLD.crashes THEN 'lease_expired'
            ELSE 'worker_shutdown' END);
    ELSIF NEW.status IN {TERMINAL} THEN
        INSERT INTO job_tallies (metric, kind, status, reason)
        VALUES ('finished', NEW.kind, NEW.status, COALESCE(NEW.error ->> 'code', ''));
        IF OLD.status <> 'queued' THEN
            -- The log has when the last attempt began; `started_at` is the first one's, which may be days before.
            PERFORM tally_duration('run', NEW.kind, (
                SELECT at FROM job_events WHERE job_id = NEW.id AND type = 'running' ORDER BY seq DESC LIMIT 1
            ));
        END IF;
    END IF;
    RETURN NULL;
END $$
"""  # noqa: S608 - TERMINAL is a constant of this file

# What was before begins as a total, but for how long it took.
TALLY_WHAT_IS = f"""
INSERT INTO job_tallies (metric, kind, status, reason, count)
SELECT 'submitted', kind, '', '', count(*) FROM jobs WHERE purged_at IS NULL GROUP BY kind
UNION ALL
SELECT 'finished', kind, status, COALESCE(error ->> 'code', ''), count(*) FROM jobs
WHERE purged_at IS NULL AND status IN {TERMINAL} GROUP BY kind, status, error ->> 'code'
"""  # noqa: S608


def upgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column(
            "traceparent", sa.Text(), nullable=True, comment="W3C Trace Context of the request that submitted it."
        ),
    )
    op.create_table(
        "job_tallies",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "le",
            sa.Double(),
            nullable=True,
            comment="Of a duration: its bucket's upper bound, seconds; maybe Infinity.",
        ),
        sa.Column("count", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column(
            "microseconds",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="Whole, so that no order of adding makes a sum smaller.",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_tallies")),
    )
    op.execute(TALLY_DURATION)
    op.execute(TALLY)
    op.execute(TALLY_WHAT_IS)
    op.execute("CREATE TRIGGER tally_new_job AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION tally_job()")
    op.execute(
        "CREATE TRIGGER tally_job AFTER UPDATE ON jobs FOR EACH ROW "
        "WHEN (OLD.status <> NEW.status OR OLD.purged_at IS DISTINCT FROM NEW.purged_at) EXECUTE FUNCTION tally_job()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER tally_job ON jobs")
    op.execute("DROP TRIGGER tally_new_job ON jobs")
    op.execute("DROP FUNCTION tally_job()")
    op.execute("DROP FUNCTION tally_duration(text, text, timestamptz)")
    op.drop_table("job_tallies")
    op.drop_column("jobs", "traceparent")
