"""mere progress of a job is told apart from other changes"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"

TELL = """
CREATE OR REPLACE FUNCTION tell_of_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify({channel}, NEW.id);
    RETURN NULL;
END $$
"""

# Within a phase, only how far it has come changes, and what the log has of it.
CHANNEL = """CASE
        WHEN NEW.status IN ('waiting', 'running') AND (OLD.status, OLD.phase, OLD.attempt) IS NOT DISTINCT FROM
            (NEW.status, NEW.phase, NEW.attempt) AND OLD.progress IS DISTINCT FROM NEW.progress
        THEN 'jobs_progress' ELSE 'jobs' END"""


def upgrade() -> None:
    op.execute(TELL.format(channel=CHANNEL))


def downgrade() -> None:
    op.execute(TELL.format(channel="'jobs'"))
