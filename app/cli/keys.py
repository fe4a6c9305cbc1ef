"""API keys, straight in the database: whoever may reach that needs no key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from app.cli.database import database_of
from app.cli.options import STATE_DIR, StateDir

SCOPES = ("jobs:read", "jobs:write", "artifacts:read")

application = typer.Typer(
    no_args_is_help=True, help="API keys: create, list, rotate, revoke. Needs the database, not the API."
)


@application.command()
def create(
    tenant: Annotated[str, typer.Option(help="Whose jobs the key may see.")] = "default",
    name: Annotated[str, typer.Option(help="What the key is for, to tell it from others.")] = "command line",
    scope: Annotated[
        list[str] | None, typer.Option(help=f"Repeatable; {', '.join(SCOPES)} unless told; admin is all.")
    ] = None,
    expires_days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="Days until it ends; never unless told.")
    ] = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Create a key and print its secret, once, alone on standard output."""
    from app.db.session import session_scope
    from app.services.keys import create_key

    expires_at = None if expires_days is None else datetime.now(UTC) + timedelta(days=expires_days)
    with session_scope(database_of(state_dir)) as session:
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

    with session_scope(database_of(state_dir)) as session:
        show(keys_table(list_keys(session)))


@application.command()
def rotate(
    key_id: Annotated[str, typer.Argument(metavar="ID")],
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=24 * 365, help="How long the old key is good beside the new one.")
    ] = 24,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Make a key of the same tenant, name and scopes in place of another, which ends after the overlap. Its secret is
    printed once, alone on standard output."""
    from app.db.session import session_scope
    from app.services.keys import rotate_key

    with session_scope(database_of(state_dir)) as session:
        try:
            key, secret = rotate_key(session, key_id, overlap=timedelta(hours=overlap_hours))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="ID") from None
        made = f"Key {key.id} of tenant {key.tenant} replaces {key_id}, which is good for {overlap_hours:g} h more."
    typer.echo(f"{made} Its secret is shown this once:", err=True)
    typer.echo(secret)


@application.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID")], state_dir: StateDir = STATE_DIR) -> None:
    """End a key at once."""
    from app.db.session import session_scope
    from app.services.keys import revoke_key

    with session_scope(database_of(state_dir)) as session:
        revoked = revoke_key(session, key_id)
    if not revoked:
        raise typer.BadParameter(f"no key {key_id} that could be revoked", param_hint="ID")
    typer.echo(f"Key {key_id} is revoked.", err=True)
