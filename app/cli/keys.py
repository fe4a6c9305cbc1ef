"""API keys, straight in the database: whoever may reach that needs no key."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import STATE_DIR, StateDir

SCOPES = ("jobs:read", "jobs:write", "artifacts:read")

application = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke. Needs the database, not the API.")


def _database(state_dir: Path) -> str:
    from pydantic import SecretStr

    from app.core.settings import Settings

    url = os.environ.get("SECATEUR_DATABASE_URL")
    if url is None:
        from app import local

        url = local.database_url(state_dir)
    # Keys need no Redis, so they must not fail for want of its address.
    return Settings(database_url=SecretStr(url), redis_url=SecretStr("redis://localhost")).sqlalchemy_url


@application.command()
def create(
    tenant: Annotated[str, typer.Option(help="Whose jobs the key may see.")] = "default",
    name: Annotated[str, typer.Option(help="What the key is for, to tell it from others.")] = "command line",
    scope: Annotated[list[str] | None, typer.Option(help=f"Repeatable; {', '.join(SCOPES)} unless told.")] = None,
    expires_days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="Days until it ends; never unless told.")
    ] = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Create a key and print its secret, once, alone on standard output."""
    from app.db.session import session_scope
    from app.services.keys import create_key

    expires_at = None if expires_days is None else datetime.now(UTC) + timedelta(days=expires_days)
    with session_scope(_database(state_dir)) as session:
        try:
            key, secret = create_key(
                session, tenant=tenant, name=name, scopes=tuple(scope or SCOPES), expires_at=expires_at
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        key_id = key.id
    typer.echo(f"Key {key_id} of tenant {tenant}. Its secret is shown this once:", err=True)
    typer.echo(secret)


@application.command("list")
def list_all(state_dir: StateDir = STATE_DIR) -> None:
    """List all keys, never their secrets."""
    from app.cli.consoles import show
    from app.cli.tables import keys_table
    from app.db.session import session_scope
    from app.services.keys import list_keys

    with session_scope(_database(state_dir)) as session:
        show(keys_table(list_keys(session)))


@application.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID")], state_dir: StateDir = STATE_DIR) -> None:
    """End a key at once."""
    from app.db.session import session_scope
    from app.services.keys import revoke_key

    with session_scope(_database(state_dir)) as session:
        revoked = revoke_key(session, key_id)
    if not revoked:
        raise typer.BadParameter(f"no key {key_id} that could be revoked", param_hint="ID")
    typer.echo(f"Key {key_id} is revoked.", err=True)
