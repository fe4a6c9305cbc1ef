"""Commands that start the service's own processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import STATE_DIR, DataDir, StateDir

Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")]


def register(application: typer.Typer) -> None:
    embedded = application.command(rich_help_panel="On one machine")
    embedded(up)
    application.command(rich_help_panel="On one machine")(demo)
    for command in (api, worker, migrate):
        application.command(rich_help_panel="Apart, by configuration (SECATEUR_DATABASE_URL, SECATEUR_REDIS_URL, …)")(
            command
        )


def up(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes; they share the cores.")] = 1,
    state_dir: StateDir = STATE_DIR,
    data_dir: DataDir = None,
) -> None:
    """Run everything here: PostgreSQL, Valkey, API and workers, until Ctrl-C. Data stays in the state folder."""
    from app import local

    local.up(host=host, port=port, workers=workers, state_dir=state_dir, data_dir=data_dir)


def demo(
    dataset: Annotated[str, typer.Option(help="digits needs no download; mnist, fashion-mnist or kmnist.")] = "digits",
    data_dir: DataDir = None,
    output: Annotated[Path, typer.Option(help="Folder for the artifacts, one folder a job.")] = Path("demo-output"),
    state_dir: Annotated[
        Path | None, typer.Option(help="Keep the demo's stack here; otherwise in a folder that is removed.")
    ] = None,
) -> None:
    """Train with and without L1, prune both, compare them: the whole service in a minute."""
    from app.demo import run

    raise typer.Exit(run(dataset=dataset, data_dir=data_dir, output=output, state_dir=state_dir))


def api(host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Serve the HTTP API."""
    from app.api.server import serve
    from app.core.logging import configure
    from app.core.settings import Settings

    settings = Settings()  # wrong ones are refused before a server is half up
    configure(settings.log_level)
    serve(settings, host=host, port=port)


def worker() -> None:
    """Run one worker, which takes one job at a time."""
    from app.core.settings import Settings
    from app.queue import worker_command

    Settings()  # a wrong setting is one sentence here, a traceback inside Celery
    command = worker_command()
    # SIGTERM means: hand the job back now. Left alone it means: finish the job first, however long that takes. Celery
    # reads this so early in its start that no module of ours could set it.
    os.environ["REMAP_SIGTERM"] = "SIGQUIT"
    # Signals go straight to Celery: a parent in between would have to hand on each of them.
    os.execv(command[0], command)  # noqa: S606


def migrate() -> None:
    """Bring the database's schema up to date."""
    from app.core.settings import Settings
    from app.db.migrate import upgrade

    upgrade(Settings().sqlalchemy_url)
