"""reruns, retention from a job's end, purging, idempotency keys, labels to search by, and notices of every change"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

TERMINAL = "('succeeded', 'failed', 'cancelled')"
DEFAULT_RETENTION_SECONDS = 30 * 86_400

# What app.contract.uses finds in a spec, as of this revision.
FILL_SOURCES = """
UPDATE jobs SET sources = ARRAY(
    SELECT DISTINCT found.id FROM (
        SELECT jsonb_array_elements_text(COALESCE(spec->'jobs', '[]'))
        UNION SELECT spec #>> '{source,job_id}'
        UNION SELECT spec #>> '{initial,job_id}'
        UNION SELECT spec #>> '{training,distillation,teacher,job_id}'
        UNION SELECT spec #>> '{fine_tuning,distillation,teacher,job_id}'
    ) AS found (id) WHERE found.id IS NOT NULL
)
"""

# Who waits for a change hears of it at the commit; in the same transaction, equal notices become one.
NOTIFY = """
CREATE FUNCTION tell_of_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('jobs', NEW.id);
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column("parent_job_id", sa.Text(), nullable=True, comment="The job that this one is a rerun of."),
    )
    op.add_column(
        "jobs",
        sa.Column(
            "sources",
            postgresql.ARRAY(sa.Text()),
            server_default="{}",
            nullable=False,
            comment="The jobs whose files it reads.",
        ),
    )
    op.add_column(
        "jobs",
        sa.Column(
            "retention_seconds",
            sa.Integer(),
            server_default=str(DEFAULT_RETENTION_SECONDS),
            nullable=False,
            comment="From its end to its purge.",
        ),
    )
    op.alter_column("jobs", "retention_seconds", server_default=None)
    op.add_column(
        "jobs",
        sa.Column(
            "purged_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Gone for clients since then; its bytes go next.",
        ),
    )
    op.execute(FILL_SOURCES)
    # What waits or runs has no end to count from, and what has ended keeps its date unless that was too soon.
    op.execute("UPDATE jobs SET retention_seconds = extract(epoch FROM expires_at - created_at)::int")
    op.execute(f"UPDATE jobs SET expires_at = NULL WHERE status NOT IN {TERMINAL}")  # noqa: S608
    op.execute(
        "UPDATE jobs SET expires_at = finished_at + make_interval(secs => retention_seconds) "  # noqa: S608
        f"WHERE status IN {TERMINAL}"
    )
    op.create_check_constraint(
        op.f("ck_jobs_expires_when_terminal"), "jobs", f"(status IN {TERMINAL}) = (expires_at IS NOT NULL)"
    )
    op.create_check_constraint(
        op.f("ck_jobs_purged_when_terminal"), "jobs", f"purged_at IS NULL OR status IN {TERMINAL}"
    )
    op.create_index(
        "ix_jobs_labels", "jobs", ["labels"], postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"}
    )
    op.create_index("ix_jobs_parent", "jobs", ["parent_job_id"], postgresql_where=sa.text("parent_job_id IS NOT NULL"))
    op.create_index("ix_jobs_sources", "jobs", ["sources"], postgresql_using="gin")
    op.create_index(
        "ix_jobs_expiring",
        "jobs",
        ["expires_at"],
        postgresql_where=sa.text("expires_at IS NOT NULL AND purged_at IS NULL"),
    )
    op.create_index(
        "ix_jobs_succeeded",
        "jobs",
        [sa.text("finished_at DESC")],
        postgresql_where=sa.text("status = 'succeeded'"),
    )
    op.create_index("ix_jobs_purged", "jobs", ["purged_at"], postgresql_where=sa.text("purged_at IS NOT NULL"))
    op.create_table(
        "purged_jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("purged_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_purged_jobs")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("content_sha256", sa.Text(), nullable=False),
        sa.Column(
            "job_id",
            sa.Text(),
            nullable=True,
            comment="Set, as is the answer, by the transaction that made the key.",
        ),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "route", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
    op.create_table(
        "secrets",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_secrets")),
    )
    op.execute(NOTIFY)
    op.execute(
        "CREATE TRIGGER jobs_change AFTER UPDATE ON jobs FOR EACH ROW "
        "WHEN (OLD.revision <> NEW.revision) EXECUTE FUNCTION tell_of_change()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER jobs_change ON jobs")
    op.execute("DROP FUNCTION tell_of_change()")
    for table in ("secrets", "idempotency_keys", "purged_jobs"):
        op.drop_table(table)
    for index in ("purged", "succeeded", "expiring", "sources", "parent", "labels"):
        op.drop_index(f"ix_jobs_{index}", table_name="jobs")
    for constraint in ("purged_when_terminal", "expires_when_terminal"):
        op.drop_constraint(f"ck_jobs_{constraint}", "jobs")
    op.execute("UPDATE jobs SET expires_at = created_at + make_interval(secs => retention_seconds)")
    for column in ("purged_at", "retention_seconds", "sources", "parent_job_id"):
        op.drop_column("jobs", column)
