"""How resources look to a person."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from app.core.limits import spelt
from secateur_client import Artifact, Delivery, Event, Job, Quota, Quotas, System, Validation, Webhook

STATUS_STYLES = {
    "waiting": "yellow",
    "queued": "yellow",
    "pending": "yellow",
    "running": "cyan",
    "cancelling": "yellow",
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "magenta",
}


class Key(Protocol):
    """What is told of an API key, whatever row it comes from."""

    @property
    def id(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def scopes(self) -> Sequence[str]: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def expires_at(self) -> datetime | None: ...
    @property
    def revoked_at(self) -> datetime | None: ...
    @property
    def last_used_at(self) -> datetime | None: ...


def status_text(job: Job) -> Text:
    return Text(job.status, style=STATUS_STYLES.get(job.status, ""))


def progress_text(job: Job) -> str:
    """Such as "training 3/5 epochs"; empty for a job that does nothing now. That a sweep waits, its status says."""
    if job.done or job.status == "queued":
        return ""
    phase = "" if job.phase == job.status else (job.phase or "").replace("_", " ")
    progress = job.progress
    return f"{phase} {progress.completed}/{progress.total} {progress.unit}".lstrip() if progress else phase


def clock(moment: datetime | None) -> str:
    """A time in the reader's own zone."""
    if moment is None:
        return "–"
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def size(count: int) -> str:
    if count < 1_000:
        return f"{count} B"
    if count < 1_000_000:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.2f} MB" if count < 1_000_000_000 else f"{count / 1e9:.2f} GB"


def _facts(rows: Iterable[tuple[str, Any]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value is not None and value != "":
            table.add_row(name, value if isinstance(value, Text) else str(value))
    return table


def _listing(*columns: str, numbers: Sequence[str] = (), folding: Sequence[str] = ()) -> Table:
    """In a narrow terminal the `folding` columns take more lines; a word of the others is never torn."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in numbers else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column not in folding)
    return table


def job_facts(job: Job) -> Table:
    error = job.error
    return _facts(
        [
            ("job", job.id),
            ("kind", job.kind),
            ("name", job.display_name),
            ("rerun of", job.parent_job_id),
            ("member of", job.sweep_id),
            ("labels", ", ".join(f"{key}={value}" for key, value in job.labels.items())),
            ("status", status_text(job)),
            ("now", progress_text(job)),
            ("error", Text(f"{error.message} ({error.code})", style="red") if error else None),
            *_result_rows(job.result or {}),
            ("created", clock(job.created_at)),
            ("started", clock(job.started_at) if job.started_at else None),
            ("finished", clock(job.finished_at) if job.finished_at else None),
            ("kept until", clock(job.expires_at) if job.expires_at else None),
        ]
    )


def _result_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    if "members" in result:
        ends = ("succeeded", "failed", "cancelled", "unfinished")
        told = ", ".join(f"{result[end]} {end}" for end in ends if result.get(end))
        return [("members", f"{result['members']}: {told}"), ("front", "\n".join(result["front"]))]
    channels = ", ".join(map(str, result.get("channels") or ()))
    network = f"channels {channels}, hidden {result['hidden']}" if channels else ""
    if "nonzero" in result:
        return [
            ("network", network),
            ("non-zeros", f"{result['nonzero']:,} of {result['parameters']:,}"),
        ]
    if "accuracy_after" not in result:
        return []
    kept = f"{result['nonzero_after']:,} of {result['parameters']:,}"
    return [
        ("network", network),
        (
            "accuracy",
            f"{percent(result['accuracy_before'])} before pruning, {percent(result['accuracy_after'])} at the end",
        ),
        ("non-zeros", f"{kept} ({percent(result['sparsity'])} sparse)"),
        ("compact", f"{compact:,} parameters" if (compact := result.get("compact_parameters")) else ""),
        ("emptied", ", ".join(result["emptied"])),
    ]


def jobs_table(jobs: Iterable[Job]) -> Table:
    table = _listing("job", "kind", "status", "created", "name", folding=["name"])
    for job in jobs:
        created = f"{job.created_at.astimezone():%m-%d %H:%M}"
        table.add_row(job.id, job.kind, status_text(job), created, job.display_name or "")
    return table


def artifacts_table(artifacts: Iterable[Artifact]) -> Table:
    table = _listing("artifact", "role", "size", "sha256", numbers=["size"])
    for artifact in artifacts:
        table.add_row(artifact.name, artifact.role, size(artifact.size), artifact.sha256[:12] + "…")
    return table


def events_table(events: Iterable[Event]) -> Table:
    table = _listing("seq", "at", "event", "data", numbers=["seq"], folding=["data"])
    for event in events:
        style = {"error": "red", "warning": "yellow"}.get(event.level, "")
        data = json.dumps(event.data, ensure_ascii=False) if event.data else ""
        table.add_row(str(event.seq), clock(event.at), Text(event.type, style=style), data)
    return table


def system_facts(system: System) -> Table:
    oldest = system.oldest_queued_seconds
    waiting = "" if oldest is None else f", the oldest for {oldest:.0f} s"
    parts = [name for name, there in (("database", system.database), ("broker", system.broker)) if not there]
    return _facts(
        [
            ("version", system.version),
            ("queued", f"{system.queued}{waiting}"),
            ("running", system.running),
            ("away", Text(", ".join(parts), style="bold red") if parts else None),
            ("workers", f"{sum(worker.alive for worker in system.workers)} alive"),
        ]
    )


def workers_table(system: System) -> Table:
    table = _listing(
        "worker", "device", "threads", "state", "last seen", numbers=["threads"], folding=["worker", "device"]
    )
    for worker in system.workers:
        seen = Text(clock(worker.last_seen_at), style="" if worker.alive else "red")
        table.add_row(worker.id, worker.device_name, str(worker.threads), "busy" if worker.busy else "idle", seen)
    return table


def validation_facts(validation: Validation) -> Table:
    estimate = validation.estimate
    bytes_ = estimate.checkpoint_bytes
    return _facts(
        [
            ("spec", "valid; nothing was submitted"),
            ("members", _grouped(estimate.members)),
            ("parameters", _grouped(estimate.parameters)),
            ("MACs per image", _grouped(estimate.macs_per_image)),
            ("training MACs", _grouped(estimate.training_macs)),
            ("checkpoint", None if bytes_ is None else size(bytes_)),
        ]
    )


def _grouped(count: int | None) -> str | None:
    return None if count is None else f"{count:,}"


def quotas_facts(quotas: Quotas) -> Table:
    return _facts(
        [
            ("tenant", quotas.tenant),
            ("queued jobs", _use(quotas.queued_jobs)),
            ("running jobs", _use(quotas.running_jobs)),
            ("stored", _use(quotas.stored_bytes, size)),
            ("requests in the last minute", _use(quotas.requests_per_minute)),
        ]
    )


def _use(quota: Quota, spell: Callable[[int], str] = "{:,}".format) -> str:
    in_use = "not known" if quota.in_use is None else spell(quota.in_use)
    return f"{in_use}, no limit" if quota.limit is None else f"{in_use} of {spell(quota.limit)}"


def webhook_facts(webhook: Webhook) -> Table:
    overlap = webhook.previous_secret_expires_at
    return _facts(
        [
            ("webhook", webhook.id),
            ("url", webhook.url),
            ("events", ", ".join(webhook.events)),
            ("description", webhook.description),
            ("state", _webhook_state(webhook)),
            ("reason", webhook.disabled_reason),
            ("disabled", clock(webhook.disabled_at) if webhook.disabled_at else None),
            ("failing since", clock(webhook.failing_since) if webhook.failing_since else None),
            ("old secret until", clock(overlap) if overlap else None),
            ("created", clock(webhook.created_at)),
        ]
    )


def _webhook_state(webhook: Webhook) -> Text:
    return Text("enabled", style="green") if webhook.enabled else Text("disabled", style="red")


def webhooks_table(webhooks: Iterable[Webhook]) -> Table:
    table = _listing("webhook", "state", "url", folding=["url"])
    for webhook in webhooks:
        table.add_row(webhook.id, _webhook_state(webhook), webhook.url)
    return table


def deliveries_table(deliveries: Iterable[Delivery]) -> Table:
    table = _listing("created", "event\njob", "status\nattempts", "error", folding=["error"])
    for delivery in deliveries:
        status = Text(delivery.status, style=STATUS_STYLES.get(delivery.status, "")).append(f"\n{delivery.attempts}")
        created = f"{delivery.created_at.astimezone():%m-%d %H:%M}"
        table.add_row(created, f"{delivery.event}\n{delivery.job_id or ''}", status, delivery.error)
    return table


class Use(Protocol):
    @property
    def queued(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def stored_bytes(self) -> int: ...


class Tenant(Protocol):
    """What is told of a tenant."""

    @property
    def name(self) -> str: ...
    @property
    def own(self) -> Mapping[str, int | None]: ...
    @property
    def use(self) -> Use: ...


def tenants_table(tenants: Iterable[Tenant]) -> Table:
    table = _listing("tenant", "queued", "running", "stored bytes", "requests\na minute", folding=["tenant"])
    for tenant in tenants:
        use, own = tenant.use, {name: _limit(limit) for name, limit in tenant.own.items()}
        table.add_row(
            tenant.name,
            f"{use.queued} of {own['max_queued']}",
            f"{use.running} of {own['max_running']}",
            f"{use.stored_bytes} of {own['max_stored_bytes']}",
            own["requests_per_minute"],
        )
    return table


def _limit(limit: int | None) -> str:
    return "default" if limit is None else spelt(limit)


def keys_table(keys: Iterable[Key]) -> Table:
    table = _listing("id", "tenant", "name", "scopes", "created\nlast used", "state", folding=["tenant", "name"])
    for key in keys:
        table.add_row(
            key.id,
            key.tenant,
            key.name,
            "\n".join(key.scopes),
            f"{_day(key.created_at)}\n{_day(key.last_used_at)}",
            _state(key),
        )
    return table


def _day(moment: datetime | None) -> str:
    return clock(moment)[: len("2026-01-31")]


def _state(key: Key) -> Text:
    if key.revoked_at is not None:
        return Text("revoked", style="red")
    if key.expires_at is None:
        return Text("valid", style="green")
    if key.expires_at <= datetime.now(key.expires_at.tzinfo):
        return Text("expired", style="red")
    return Text(f"until\n{_day(key.expires_at)}", style="green")
