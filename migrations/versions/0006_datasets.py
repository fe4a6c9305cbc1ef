"""data sets: jobs whose result stays until it is deleted"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

TERMINAL = "('succeeded', 'failed', 'cancelled')"
NAME = "ck_jobs_expires_when_terminal"


def upgrade() -> None:
    op.drop_constraint(op.f(NAME), "jobs", type_="check")
    op.create_check_constraint(
        op.f(NAME),
        "jobs",
        f"(status IN {TERMINAL} AND NOT (kind = 'dataset' AND status = 'succeeded')) = (expires_at IS NOT NULL)",
    )
    op.create_index(
        "ix_jobs_datasets",
        "jobs",
        ["tenant", sa.text("created_at DESC")],
        postgresql_where=sa.text("kind = 'dataset'"),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_datasets", table_name="jobs")
    op.execute(
        "UPDATE jobs SET expires_at = now() WHERE kind = 'dataset' AND expires_at IS NULL AND finished_at IS NOT NULL"
    )
    op.drop_constraint(op.f(NAME), "jobs", type_="check")
    op.create_check_constraint(op.f(NAME), "jobs", f"(status IN {TERMINAL}) = (expires_at IS NOT NULL)")
