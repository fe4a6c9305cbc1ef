"""The command line. Nothing heavy is imported until a command needs it: `secateur --help` must answer at once."""

from __future__ import annotations

import sys

import typer

from app.cli import jobs, keys, processes, tenants, webhooks

application = typer.Typer(
    name="secateur",
    help="Train a regularized CNN, prune it, and get the smaller network with the evidence.",
    epilog="Exit codes: 0 fine · 1 a job ended failed or cancelled, or `up` or `api` cannot start · 2 wrong usage or "
    "settings · 3 the server refused, or what it sent does not hold · 4 the server or the database cannot be reached, "
    "or that one lacks the schema",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
processes.register(application)
jobs.register(application)
application.add_typer(webhooks.application, name="webhooks", rich_help_panel=jobs.PANEL)
application.add_typer(keys.application, name="keys")
application.add_typer(tenants.application, name="tenants")


def main() -> None:
    """The console script. Every failure that a user can do something about is a sentence, not a traceback."""
    try:
        application()
    except Exception as error:
        from app.cli.failures import describe

        failure = describe(error)
        if failure is None:
            raise
        typer.echo(failure.text, err=True)
        sys.exit(failure.exit_code)
