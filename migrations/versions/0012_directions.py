"""names without signs that turn the direction of text, which no spec may hold any more: not to be read is worse"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"

SIGNS = r"E'[\u202a-\u202e\u2066-\u2069]'"


def upgrade() -> None:
    # In their place, since a name may be nothing else and must not be empty.
    op.execute(
        f"UPDATE jobs SET display_name = regexp_replace(display_name, {SIGNS}, U&'\\fffd', 'g'), "  # noqa: S608
        f"labels = regexp_replace(labels::text, {SIGNS}, U&'\\fffd', 'g')::jsonb, "
        f"spec = regexp_replace(spec::text, {SIGNS}, U&'\\fffd', 'g')::jsonb "
        f"WHERE display_name ~ {SIGNS} OR labels::text ~ {SIGNS} OR spec::text ~ {SIGNS}"
    )


def downgrade() -> None:
    """There is nothing to undo."""
