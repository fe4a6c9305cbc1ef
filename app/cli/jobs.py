"""Commands that talk to a server over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import STATE_DIR, AsJson, JobId, StateDir

if TYPE_CHECKING:
    from secateur_client import Artifact, Client, Job

PANEL = "Talk to a server (SECATEUR_URL, SECATEUR_API_KEY)"


def register(application: typer.Typer) -> None:
    for command in (
        submit,
        upload,
        status,
        wait,
        cancel,
        retry,
        rerun,
        delete,
        download,
        events,
        options,
        system,
        quotas,
    ):
        application.command(rich_help_panel=PANEL)(command)
    application.command("list", rich_help_panel=PANEL)(list_jobs)


def submit(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A JSON or YAML file, or - for standard input.")],
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the job has ended.")] = False,
    download: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Wait, then fetch all artifacts into this folder.")
    ] = None,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check the spec; submit nothing.")] = False,
    as_json: AsJson = False,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Submit a job; its id goes to standard output, or with --wait or --download what became of it."""
    from app.cli.connection import connect
    from app.cli.documents import load

    document = load(spec)
    with connect(state_dir) as client:
        if validate_only:
            return _show_validation(client, document, as_json)
        job = client.submit(document)
        if not wait and download is None:
            return _show_submitted(job, as_json)
        job = _follow(client, job.id)
        if download is not None and job.status == "succeeded":
            _fetch(client, job.id, client.artifacts(job.id), download)
    return _show_ended(job, as_json)


def upload(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A state dict: safetensors, or as torch.save(model.state_dict()).")
    ],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The job's display name.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Repeatable.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the file has been checked.")] = False,
    as_json: AsJson = False,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Upload a network that was trained elsewhere; the id of the job that imports it goes to standard output, or with
    --wait what became of it."""
    from app.cli.connection import connect

    labels = _labels(label or [])
    with connect(state_dir) as client:
        job = client.upload_checkpoint(file, display_name=name, labels=labels)
        if not wait:
            return _show_submitted(job, as_json)
        job = _follow(client, job.id)
    return _show_ended(job, as_json)


def _labels(pairs: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key in found:
            raise typer.BadParameter(f"{pair!r} is no KEY=VALUE of its own", param_hint="--label")
        found[key] = value
    return found


def status(job: JobId, as_json: AsJson = False, state_dir: StateDir = STATE_DIR) -> None:
    """Show one job."""
    from app.cli.connection import connect

    with connect(state_dir) as client:
        _show_job(client.get(job), as_json)


def list_jobs(
    status: Annotated[list[str] | None, typer.Option(help="Only these; repeatable.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="train, prune, compare, sweep, import or dataset; repeatable.")
    ] = None,
    sweep: Annotated[str | None, typer.Option(metavar="JOB", help="Only members of this sweep.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: AsJson = False,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """List jobs, newest first."""
    from app.cli.connection import connect
    from app.cli.consoles import show, show_json
    from app.cli.tables import jobs_table

    with connect(state_dir) as client:
        found = client.list(status=status or (), kind=kind or (), sweep=sweep, page_size=min(limit, 100))
        jobs = list(islice(found, limit))
    show_json([job.as_json() for job in jobs]) if as_json else show(jobs_table(jobs))


def wait(job: JobId, as_json: AsJson = False, state_dir: StateDir = STATE_DIR) -> None:
    """Stay until a job has ended. Exit code 0 when it succeeded, 1 when it failed or was cancelled."""
    from app.cli.connection import connect

    with connect(state_dir) as client:
        ended = _follow(client, job)
    _show_ended(ended, as_json)


def cancel(job: JobId, as_json: AsJson = False, state_dir: StateDir = STATE_DIR) -> None:
    """Ask for a job's end."""
    from app.cli.connection import connect

    with connect(state_dir) as client:
        _show_job(client.cancel(job), as_json)


def retry(job: JobId, as_json: AsJson = False, state_dir: StateDir = STATE_DIR) -> None:
    """Run a failed job again; a training goes on from its last checkpoint."""
    from app.cli.connection import connect

    with connect(state_dir) as client:
        _show_job(client.retry(job), as_json)


def rerun(job: JobId, as_json: AsJson = False, state_dir: StateDir = STATE_DIR) -> None:
    """Submit the spec of a job as a new one; its id goes to standard output."""
    from app.cli.connection import connect

    with connect(state_dir) as client:
        _show_submitted(client.rerun(job), as_json)


def delete(jobs: Annotated[list[str], typer.Argument(metavar="JOB...")], state_dir: StateDir = STATE_DIR) -> None:
    """Delete jobs that are done, with their files, for good."""
    from app.cli.connection import connect
    from app.cli.consoles import remark

    with connect(state_dir) as client:
        for job in jobs:
            client.delete(job)
            remark(f"{job} is deleted", style="dim")


def download(
    job: JobId,
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Else one named as the job.")] = None,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="All artifacts unless told.")] = None,
    as_json: AsJson = False,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Fetch a job's artifacts, checked against their digests; continues what an earlier call began."""
    from app.cli.connection import connect
    from app.cli.consoles import remark, show, show_json
    from app.cli.tables import artifacts_table

    with connect(state_dir) as client:
        artifacts = client.artifacts(job)
        if not artifacts:
            state = client.get(job).status
            remark(f"{job} has no artifacts: it is {state}, and only a job that succeeded publishes any.")
            raise typer.Exit(1)
        chosen = _chosen(artifacts, names or [])
        _fetch(client, job, chosen, folder or Path(job))
    show_json([artifact.as_json() for artifact in chosen]) if as_json else show(artifacts_table(chosen))


def events(job: JobId, as_json: AsJson = False, state_dir: StateDir = STATE_DIR) -> None:
    """Show a job's log."""
    from app.cli.connection import connect
    from app.cli.consoles import show, show_json
    from app.cli.tables import events_table

    with connect(state_dir) as client:
        found = list(client.events(job))
    show_json([event.as_json() for event in found]) if as_json else show(events_table(found))


def options(as_json: AsJson = False, state_dir: StateDir = STATE_DIR) -> None:
    """Show what a spec may say: kinds, data sets, methods, ranges and defaults."""
    import yaml

    from app.cli.connection import connect
    from app.cli.consoles import show_json

    with connect(state_dir) as client:
        found = client.options()
    if as_json:
        return show_json(found)
    # A quarter of a megabyte: libyaml, which most installations have, writes it in a fifth of the time.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return typer.echo(yaml.dump(found, Dumper=dumper, sort_keys=False, allow_unicode=True, width=100).rstrip())


def system(as_json: AsJson = False, state_dir: StateDir = STATE_DIR) -> None:
    """Show the server's queue and workers."""
    from app.cli.connection import connect
    from app.cli.consoles import show, show_json
    from app.cli.tables import system_facts, workers_table

    with connect(state_dir) as client:
        found = client.system()
    if as_json:
        return show_json(found.as_json())
    show(system_facts(found))
    return show(workers_table(found)) if found.workers else None


def quotas(as_json: AsJson = False, state_dir: StateDir = STATE_DIR) -> None:
    """Show what the key's tenant may have, and has."""
    from app.cli.connection import connect
    from app.cli.consoles import show, show_json
    from app.cli.tables import quotas_facts

    with connect(state_dir) as client:
        found = client.quotas()
    show_json(found.as_json()) if as_json else show(quotas_facts(found))


def _follow(client: Client, job_id: str) -> Job:
    from app.cli.consoles import standard_error
    from app.cli.progress import watching

    with watching(standard_error()) as show:
        for job in client.watch(job_id):
            show(job)
    return job


def _chosen(artifacts: Sequence[Artifact], names: Sequence[str]) -> list[Artifact]:
    by_name = {artifact.name: artifact for artifact in artifacts}
    for name in names:
        if name not in by_name:
            raise typer.BadParameter(f"no artifact {name!r}; there are {', '.join(by_name)}", param_hint="NAME")
    return [by_name[name] for name in names] if names else list(artifacts)


def _fetch(client: Client, job_id: str, artifacts: Sequence[Artifact], folder: Path) -> None:
    from app.cli.consoles import remark

    folder.mkdir(parents=True, exist_ok=True)
    for artifact in artifacts:
        remark(f"{client.download(job_id, artifact, folder)}", style="dim")


def _show_validation(client: Client, document: dict[str, object], as_json: bool) -> None:
    from app.cli.consoles import show, show_json
    from app.cli.tables import validation_facts

    validation = client.validate(document)
    show_json(validation.as_json()) if as_json else show(validation_facts(validation))


def _show_submitted(job: Job, as_json: bool) -> None:
    from app.cli.consoles import remark, show_json

    if as_json:
        return show_json(job.as_json())
    typer.echo(job.id)
    return remark(f"Submitted; follow it with: secateur wait {job.id}", style="dim")


def _show_job(job: Job, as_json: bool) -> None:
    from app.cli.consoles import show, show_json
    from app.cli.tables import job_facts

    show_json(job.as_json()) if as_json else show(job_facts(job))


def _show_ended(job: Job, as_json: bool) -> None:
    _show_job(job, as_json)
    if job.status != "succeeded":
        raise typer.Exit(1)
