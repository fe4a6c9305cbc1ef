"""Limits of tenants, straight in the database: whoever may reach that needs no key."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.database import database_of
from app.cli.options import STATE_DIR, StateDir

application = typer.Typer(
    no_args_is_help=True, help="What each tenant may have: list, set. Needs the database, not the API."
)

DEFAULT = "default"
_WRITTEN = "a number, `none`, or `default` for what the servers' settings say"


@application.command("list")
def list_all(state_dir: StateDir = STATE_DIR) -> None:
    """List all tenants: what each has, and its own limits."""
    from app.cli.consoles import show
    from app.cli.tables import tenants_table
    from app.db.session import session_scope
    from app.db.tenants import all_tenants

    with session_scope(database_of(state_dir)) as session:
        show(tenants_table(all_tenants(session)))


@application.command("set")
def set_limits(
    name: Annotated[str, typer.Argument(metavar="TENANT")],
    max_queued: Annotated[str | None, typer.Option(help=f"Jobs that may wait: {_WRITTEN}.")] = None,
    max_running: Annotated[str | None, typer.Option(help="Jobs that may run at once.")] = None,
    max_stored_bytes: Annotated[str | None, typer.Option(help="Bytes of published files and uploads.")] = None,
    requests_per_minute: Annotated[str | None, typer.Option(help="Over all keys of the tenant.")] = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Give a tenant limits of its own, from now on; those that are not named stay."""
    from app.db.session import session_scope
    from app.services import quotas

    given = {
        "max_queued": max_queued,
        "max_running": max_running,
        "max_stored_bytes": max_stored_bytes,
        "requests_per_minute": requests_per_minute,
    }
    own = {limit: _limit(limit, written) for limit, written in given.items() if written is not None}
    if not own:
        raise typer.BadParameter("name a limit to set, such as --max-running 2")
    with session_scope(database_of(state_dir)) as session:
        try:
            quotas.set_limits(session, name, own)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="TENANT") from None
    typer.echo(f"Limits of tenant {name} are set.", err=True)


def _limit(name: str, written: str) -> int | None:
    from pydantic import TypeAdapter, ValidationError

    from app.core.limits import Limit

    if written == DEFAULT:
        return None
    try:
        limit: int = TypeAdapter(Limit).validate_python(written)
    except ValidationError:
        raise typer.BadParameter(f"it is {_WRITTEN}", param_hint=f"--{name.replace('_', '-')}") from None
    return limit
