"""Brings the schema up to date. Several processes may do so at once: an advisory lock makes them take turns."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import as_file, files

from alembic import command
from alembic.config import Config
from sqlalchemy import text

from app.db.session import make_engine

_LOCK = 0x5EC47E  # any number that nothing else in the database locks


def upgrade(sqlalchemy_url: str) -> None:
    _migrate(sqlalchemy_url, command.upgrade, "head")


def downgrade(sqlalchemy_url: str, revision: str) -> None:
    """Back to an earlier schema; what that one cannot hold is lost."""
    _migrate(sqlalchemy_url, command.downgrade, revision)


def _migrate(sqlalchemy_url: str, move: Callable[[Config, str], None], revision: str) -> None:
    engine = make_engine(sqlalchemy_url, pool_size=1)
    try:
        with engine.begin() as connection, as_file(files("migrations")) as folder:
            # A turn may be long in coming, and so may the end of a statement about a large table.
            connection.execute(text("SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            config = Config()
            config.set_main_option("script_location", str(folder).replace("%", "%%"))
            config.attributes["connection"] = connection
            move(config, revision)
    finally:
        engine.dispose()
