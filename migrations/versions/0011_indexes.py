"""indexes for what each process asks every few seconds, and a heartbeat that changes none"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

QUEUED, LEASED = sa.text("status = 'queued'"), sa.text("status IN ('running', 'cancelling')")


def upgrade() -> None:
    op.create_index("ix_purged_jobs_purged_at", "purged_jobs", ["purged_at"])
    op.create_index("ix_jobs_queue_deadline", "jobs", ["queue_deadline"], postgresql_where=QUEUED)
    op.create_index("ix_jobs_publish_at", "jobs", ["publish_at"], postgresql_where=QUEUED)
    op.drop_index("ix_jobs_leased", table_name="jobs")
    op.create_index("ix_jobs_leased", "jobs", ["tenant"], postgresql_where=LEASED)


def downgrade() -> None:
    op.drop_index("ix_jobs_leased", table_name="jobs")
    op.create_index("ix_jobs_leased", "jobs", ["lease_expires_at"], postgresql_where=LEASED)
    op.drop_index("ix_jobs_publish_at", table_name="jobs")
    op.drop_index("ix_jobs_queue_deadline", table_name="jobs")
    op.drop_index("ix_purged_jobs_purged_at", table_name="purged_jobs")
