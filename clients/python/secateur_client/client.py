"""The two clients: one that blocks, one for asyncio."""

from __future__ import annotations

from builtins import list as List  # noqa: N812 - `list` is a method here
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import httpx

from secateur_client.calls import PAGE_SIZE, AnyPath, Calls, JobRef, WebhookRef
from secateur_client.exchange import RETRY_SECONDS, http_options
from secateur_client.resources import (
    Artifact,
    Comparison,
    Dataset,
    Delivery,
    Event,
    Job,
    Lineage,
    Quotas,
    System,
    Validation,
    Webhook,
)
from secateur_client.transport import Blocking, OnLoop, iterate, run


class AsyncClient(Calls):
    """Talks to one server with one key, on asyncio's loop. Use it as an async context manager, or call `close`.

    `retry_seconds` is how long one request goes on trying, in all.
    """

    def __init__(self, url: str, api_key: str | None = None, *, retry_seconds: float = RETRY_SECONDS) -> None:
        super().__init__(OnLoop(httpx.AsyncClient(**http_options(url))), url, api_key, retry_seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Client:
    """Talks to one server with one key, and blocks. Use it as a context manager, or call `close`.

    `retry_seconds` is how long one request goes on trying, in all.
    """

    def __init__(self, url: str, api_key: str | None = None, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self._calls = Calls(Blocking(httpx.Client(**http_options(url))), url, api_key, retry_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        run(self._calls.close())

    @property
    def url(self) -> str:
        return self._calls.url

    def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        return run(self._calls.submit(spec, idempotency_key=idempotency_key))

    def validate(self, spec: Mapping[str, Any]) -> Validation:
        return run(self._calls.validate(spec))

    def upload_checkpoint(
        self,
        path: AnyPath,
        *,
        display_name: str | None = None,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        return run(
            self._calls.upload_checkpoint(
                path, display_name=display_name, labels=labels, idempotency_key=idempotency_key
            )
        )

    def rerun(self, job: JobRef, *, idempotency_key: str | None = None) -> Job:
        return run(self._calls.rerun(job, idempotency_key=idempotency_key))

    def get(self, job: JobRef) -> Job:
        return run(self._calls.get(job))

    def wait(self, job: JobRef, *, timeout: float | None = None) -> Job:
        return run(self._calls.wait(job, timeout=timeout))

    def watch(self, job: JobRef, *, timeout: float | None = None) -> Iterator[Job]:
        return iterate(self._calls.watch(job, timeout=timeout))

    def list(
        self,
        *,
        status: str | Sequence[str] = (),
        kind: str | Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        parent: JobRef | None = None,
        sweep: JobRef | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int = PAGE_SIZE,
    ) -> Iterator[Job]:
        return iterate(
            self._calls.list(
                status=status,
                kind=kind,
                labels=labels,
                parent=parent,
                sweep=sweep,
                created_after=created_after,
                created_before=created_before,
                page_size=page_size,
            )
        )

    def update(self, job: JobRef, changes: Mapping[str, Any], *, only_if_unchanged: bool = False) -> Job:
        return run(self._calls.update(job, changes, only_if_unchanged=only_if_unchanged))

    def cancel(self, job: JobRef) -> Job:
        return run(self._calls.cancel(job))

    def retry(self, job: JobRef) -> Job:
        return run(self._calls.retry(job))

    def delete(self, job: JobRef) -> None:
        run(self._calls.delete(job))

    def lineage(self, job: JobRef) -> Lineage:
        return run(self._calls.lineage(job))

    def compare(self, jobs: Sequence[JobRef]) -> Comparison:
        return run(self._calls.compare(jobs))

    def events(self, job: JobRef, *, after: int = 0, page_size: int = PAGE_SIZE) -> Iterator[Event]:
        return iterate(self._calls.events(job, after=after, page_size=page_size))

    def stream(self, job: JobRef, *, after: int = 0) -> Iterator[Event]:
        return iterate(self._calls.stream(job, after=after))

    def artifacts(self, job: JobRef) -> List[Artifact]:
        return run(self._calls.artifacts(job))

    def download(self, job: JobRef, artifact: Artifact | str, path: AnyPath) -> Path:
        return run(self._calls.download(job, artifact, path))

    def options(self) -> dict[str, Any]:
        return run(self._calls.options())

    def upload_dataset(
        self,
        path: AnyPath,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Dataset:
        return run(self._calls.upload_dataset(path, name=name, labels=labels, idempotency_key=idempotency_key))

    def dataset(self, dataset_id: str) -> Dataset:
        return run(self._calls.dataset(dataset_id))

    def delete_dataset(self, dataset_id: str) -> None:
        run(self._calls.delete_dataset(dataset_id))

    def datasets(self) -> Iterator[Dataset]:
        return iterate(self._calls.datasets())

    def system(self) -> System:
        return run(self._calls.system())

    def quotas(self) -> Quotas:
        return run(self._calls.quotas())

    def create_webhook(
        self,
        url: str,
        events: str | Sequence[str],
        *,
        description: str | None = None,
        idempotency_key: str | None = None,
    ) -> Webhook:
        return run(self._calls.create_webhook(url, events, description=description, idempotency_key=idempotency_key))

    def webhook(self, webhook: WebhookRef) -> Webhook:
        return run(self._calls.webhook(webhook))

    def webhooks(self) -> List[Webhook]:
        return run(self._calls.webhooks())

    def update_webhook(self, webhook: WebhookRef, changes: Mapping[str, Any]) -> Webhook:
        return run(self._calls.update_webhook(webhook, changes))

    def delete_webhook(self, webhook: WebhookRef) -> None:
        run(self._calls.delete_webhook(webhook))

    def rotate_webhook_secret(self, webhook: WebhookRef) -> Webhook:
        return run(self._calls.rotate_webhook_secret(webhook))

    def test_webhook(self, webhook: WebhookRef) -> Delivery:
        return run(self._calls.test_webhook(webhook))

    def deliveries(self, webhook: WebhookRef, *, page_size: int = PAGE_SIZE) -> Iterator[Delivery]:
        return iterate(self._calls.deliveries(webhook, page_size=page_size))

    def redeliver(self, webhook: WebhookRef, delivery: Delivery | str) -> Delivery:
        return run(self._calls.redeliver(webhook, delivery))


# What each does is written once, above.
for _name, _method in vars(Client).items():
    if not _name.startswith("_") and hasattr(Calls, _name) and not _method.__doc__:
        _method.__doc__ = getattr(Calls, _name).__doc__
