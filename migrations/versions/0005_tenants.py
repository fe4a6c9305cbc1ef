"""limits of a tenant's own, what it stores, the order in which queued jobs have their turn, and rotated keys"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

LIMITS = ("max_queued", "max_running", "max_stored_bytes", "requests_per_minute")

# Of the artifacts, and of an upload for as long as app.db.sweep.uploads_needed keeps it; a test holds the two together.
STORED_BYTES = """
CREATE FUNCTION stored_bytes(job jobs) RETURNS bigint IMMUTABLE LANGUAGE sql AS $$
    SELECT CASE
        WHEN job.purged_at IS NOT NULL THEN 0
        WHEN job.kind = 'import' AND (
            job.status IN ('queued', 'running', 'cancelling')
            OR job.status = 'failed' AND (job.error->>'retryable')::boolean
        ) THEN job.artifact_bytes + (job.spec->>'size')::bigint
        ELSE job.artifact_bytes
    END
$$
"""

COUNT_STORED = """
CREATE FUNCTION count_stored() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    more bigint := 0;
    owner text;
BEGIN
    IF TG_OP <> 'DELETE' THEN
        owner := NEW.tenant;
        more := stored_bytes(NEW);
    END IF;
    IF TG_OP <> 'INSERT' THEN
        owner := OLD.tenant;
        more := more - stored_bytes(OLD);
    END IF;
    INSERT INTO tenants (name, stored_bytes) VALUES (owner, more)
    ON CONFLICT (name) DO UPDATE SET stored_bytes = tenants.stored_bytes + excluded.stored_bytes;
    RETURN NULL;
END $$
"""

CHANGED = {
    "insert": "stored_bytes(NEW) <> 0",
    "update": "stored_bytes(NEW) <> stored_bytes(OLD)",
    "delete": "stored_bytes(OLD) <> 0",
}


def upgrade() -> None:
    op.create_table(
        "tenants",
        sa.Column("name", sa.Text(), nullable=False),
        *(sa.Column(limit, sa.BigInteger(), nullable=True) for limit in LIMITS),
        sa.Column(
            "stored_bytes", sa.BigInteger(), server_default="0", nullable=False, comment="Kept by a trigger on jobs."
        ),
        *(sa.CheckConstraint(f"{limit} >= 0", name=op.f(f"ck_tenants_{limit}_counts")) for limit in LIMITS),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_tenants")),
    )
    op.create_index(
        "ix_jobs_turn", "jobs", ["tenant", "queued_at", "id"], postgresql_where=sa.text("status = 'queued'")
    )
    op.add_column(
        "jobs",
        sa.Column(
            "artifact_bytes", sa.BigInteger(), server_default="0", nullable=False, comment="Of all it published."
        ),
    )
    op.add_column(
        "api_keys", sa.Column("replaced_by", sa.Text(), nullable=True, comment="The key that it was rotated to.")
    )
    op.execute(
        "UPDATE jobs SET artifact_bytes = published.bytes "
        "FROM (SELECT job_id, sum(size) AS bytes FROM job_artifacts GROUP BY job_id) AS published "
        "WHERE published.job_id = jobs.id"
    )
    op.execute(STORED_BYTES)
    op.execute(
        "INSERT INTO tenants (name, stored_bytes) SELECT tenant, sum(stored_bytes(jobs)) FROM jobs "
        "GROUP BY tenant HAVING sum(stored_bytes(jobs)) > 0"
    )
    op.execute(COUNT_STORED)
    for event, condition in CHANGED.items():
        # At the commit: jobs of a tenant that end together wait for each other no longer than that takes.
        op.execute(
            f"CREATE CONSTRAINT TRIGGER count_stored_{event} AFTER {event.upper()} ON jobs "
            f"DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION count_stored()"
        )


def downgrade() -> None:
    for event in CHANGED:
        op.execute(f"DROP TRIGGER count_stored_{event} ON jobs")
    op.execute("DROP FUNCTION count_stored")
    op.execute("DROP FUNCTION stored_bytes")
    op.drop_column("api_keys", "replaced_by")
    op.drop_column("jobs", "artifact_bytes")
    op.drop_index("ix_jobs_turn", table_name="jobs")
    op.drop_table("tenants")
