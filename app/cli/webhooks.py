"""Webhooks, over HTTP: whom the server tells of what happens to jobs."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, TypeAlias

import typer

from app.cli.options import STATE_DIR, AsJson, StateDir

ENDS = ("job.succeeded", "job.failed", "job.cancelled")

application = typer.Typer(
    no_args_is_help=True, help="Have an address told of what happens to jobs: create, list, show, test, delete."
)

WebhookId: TypeAlias = Annotated[str, typer.Argument(metavar="ID", help="The webhook's id, wh_….")]


@application.command()
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where events are sent: https://….")],
    event: Annotated[
        list[str] | None, typer.Option(help=f"Repeatable; {', '.join(ENDS)} unless told. job.started is another.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="What it is for, to tell it from others.")] = None,
    as_json: AsJson = False,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Create a webhook and print the secret that signs what it is sent, once, alone on standard output."""
    from app.cli.connection import connect
    from app.cli.consoles import show_json

    with connect(state_dir) as client:
        made = client.create_webhook(url, event or ENDS, description=description)
    if as_json:
        return show_json(made.as_json())
    typer.echo(f"Webhook {made.id} is told at {made.url}. Its secret is shown this once:", err=True)
    return typer.echo(made.secret)


@application.command("list")
def list_all(as_json: AsJson = False, state_dir: StateDir = STATE_DIR) -> None:
    """List webhooks, newest first; never their secrets."""
    from app.cli.connection import connect
    from app.cli.consoles import show, show_json
    from app.cli.tables import webhooks_table

    with connect(state_dir) as client:
        found = client.webhooks()
    show_json([webhook.as_json() for webhook in found]) if as_json else show(webhooks_table(found))


@application.command("show")
def show_one(
    webhook_id: WebhookId,
    limit: Annotated[int, typer.Option(min=1, help="How many deliveries, newest first.")] = 10,
    as_json: AsJson = False,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Show a webhook, and what it was sent in the last 30 days."""
    from app.cli.connection import connect
    from app.cli.consoles import show, show_json
    from app.cli.tables import deliveries_table, webhook_facts

    with connect(state_dir) as client:
        webhook = client.webhook(webhook_id)
        sent = list(islice(client.deliveries(webhook, page_size=min(limit, 100)), limit))
    if as_json:
        return show_json({**webhook.as_json(), "deliveries": [each.as_json() for each in sent]})
    show(webhook_facts(webhook))
    return show(deliveries_table(sent)) if sent else None


@application.command("test")
def send_test(webhook_id: WebhookId, as_json: AsJson = False, state_dir: StateDir = STATE_DIR) -> None:
    """Have a test sent, once; its delivery's id goes to standard output."""
    from app.cli.connection import connect
    from app.cli.consoles import remark, show_json

    with connect(state_dir) as client:
        sent = client.test_webhook(webhook_id)
    if as_json:
        return show_json(sent.as_json())
    typer.echo(sent.id)
    return remark(f"What has become of it: secateur webhooks show {webhook_id}", style="dim")


@application.command()
def delete(webhook_id: WebhookId, state_dir: StateDir = STATE_DIR) -> None:
    """Delete a webhook; what still waits to be sent to it is not sent."""
    from app.cli.connection import connect
    from app.cli.consoles import remark

    with connect(state_dir) as client:
        client.delete_webhook(webhook_id)
    remark(f"{webhook_id} is deleted", style="dim")
