"""Alembic's entry. It runs on a connection that `app.db.migrate` has opened and locked."""

from __future__ import annotations

from alembic import context

from app.db.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
