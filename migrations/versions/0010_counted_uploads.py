"""an uploaded data set counts among what its tenant stores while it is checked, as an uploaded checkpoint does"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"

# As in 0005, but for the kinds.
STORED_BYTES = """
CREATE OR REPLACE FUNCTION stored_bytes(job jobs) RETURNS bigint IMMUTABLE LANGUAGE sql AS $$
    SELECT CASE
        WHEN job.purged_at IS NOT NULL THEN 0
        WHEN job.kind IN ({kinds}) AND (
            job.status IN ('queued', 'running', 'cancelling')
            OR job.status = 'failed' AND (job.error->>'retryable')::boolean
        ) THEN job.artifact_bytes + (job.spec->>'size')::bigint
        ELSE job.artifact_bytes
    END
$$
"""

RECOUNT = """
INSERT INTO tenants (name, stored_bytes) SELECT tenant, sum(stored_bytes(jobs)) FROM jobs GROUP BY tenant
ON CONFLICT (name) DO UPDATE SET stored_bytes = excluded.stored_bytes
"""


def upgrade() -> None:
    _count("'import', 'dataset'")


def downgrade() -> None:
    _count("'import'")


def _count(kinds: str) -> None:
    op.execute("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE")  # nothing is added in between
    op.execute(STORED_BYTES.format(kinds=kinds))
    op.execute(RECOUNT)
