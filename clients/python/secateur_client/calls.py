"""Every request of the API, and what is made of its answer: written once, for both ways to wait."""

from __future__ import annotations

import math
import os
import time
from builtins import list as List  # noqa: N812 - `list` is a method here
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from secateur_client.downloading import Download, target_of
from secateur_client.errors import (
    DownloadFailed,
    Gone,
    NotSecateur,
    Problem,
    Unreachable,
    WaitTimeout,
)
from secateur_client.exchange import SILENCE_SECONDS, Exchange, parsed, pause_named
from secateur_client.resources import (
    Artifact,
    Comparison,
    Dataset,
    Delivery,
    Event,
    Job,
    Lineage,
    Quotas,
    Resource,
    System,
    Validation,
    Webhook,
)
from secateur_client.sse import Parser

MOST_WAIT_SECONDS = 30
"""What the server takes as `wait`."""
STREAM_SILENCE_SECONDS = 45.0
"""A stream says something every 15 s, even when there is nothing to say."""
PACE_SECONDS = 2.0
"""Between two looks at a job that the server did not hold back, and for which it names no time."""
LEAST_PACE_SECONDS = 0.1
PAGE_SIZE = 100

JobRef: TypeAlias = Job | str
"""A job, or its id."""
WebhookRef: TypeAlias = Webhook | str
"""A webhook, or its id."""
AnyPath: TypeAlias = str | os.PathLike[str]


class Calls(Exchange):
    """The API's operations."""

    # --- jobs ---------------------------------------------------------------------------------------------------------

    async def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit a job, once, however often the request has to be sent: each of its tries bears the same key. Give a
        key of your own for that to hold over several calls, such as before and after a crash."""
        return await self._made(Job, "/v1/jobs", idempotency_key, document=spec)

    async def validate(self, spec: Mapping[str, Any]) -> Validation:
        """The resolved spec and an estimate; nothing is stored."""
        request = self._request("POST", "/v1/jobs", params={"validate_only": "true"}, document=spec)
        return parsed(Validation, await self._answer(request, repeatable=True))

    async def upload_checkpoint(
        self,
        path: AnyPath,
        *,
        display_name: str | None = None,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Send a state dict of the cnn architecture, as safetensors or as torch.save writes it, piece by piece; returns
        the job that imports it: one, however often the file has to be sent. Raises OSError when it cannot be read."""
        params = {"display_name": display_name, "label": _pairs(labels)}
        return await self._made(Job, "/v1/checkpoints", idempotency_key, params=params, file=Path(path))

    async def rerun(self, job: JobRef, *, idempotency_key: str | None = None) -> Job:
        """Submit the spec of a job as a new one."""
        return await self._made(Job, f"{_path(job)}/rerun", idempotency_key)

    async def get(self, job: JobRef) -> Job:
        """The job as it is now."""
        return await self._get(Job, _path(job))

    async def wait(self, job: JobRef, *, timeout: float | None = None) -> Job:
        """The job, once it is done, whatever became of it: look at `status`. Raises WaitTimeout after `timeout`
        seconds."""
        async with aclosing(self.watch(job, timeout=timeout)) as states:
            async for state in states:
                last = state
        return last

    async def watch(self, job: JobRef, *, timeout: float | None = None) -> AsyncGenerator[Job]:
        """The job now, and again at each change; the last one is done. Raises WaitTimeout after `timeout` seconds.

        Goes by `done` alone, so a status or phase that this client does not know cannot hang it.
        """
        until = math.inf if timeout is None else time.monotonic() + timeout
        last, etag, wait = None, "", 0
        while True:
            asked = time.monotonic()
            response = await self._answer(self._look(job, etag, wait), until=until)
            job_now = last if last and response.status_code == httpx.codes.NOT_MODIFIED else parsed(Job, response)
            changed = job_now != last
            if changed:
                yield job_now
            if job_now.done:
                return
            last, etag = job_now, response.headers.get("ETag", "")
            if (left := until - time.monotonic()) <= 0:
                raise WaitTimeout(last)
            if not changed and time.monotonic() - asked < min(wait, 1):
                # The answer was not held back until there is something new: what stands in between may not allow it.
                await self._transport.sleep(min(_pace(response), left))
            wait = math.ceil(min(MOST_WAIT_SECONDS, left))

    def _look(self, job: JobRef, etag: str, wait: int) -> httpx.Request:
        headers = {"If-None-Match": etag} if etag else {}
        silence = wait + SILENCE_SECONDS
        return self._request("GET", _path(job), params={"wait": wait}, headers=headers, silence=silence)

    async def list(
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
    ) -> AsyncGenerator[Job]:
        """Jobs of the key's tenant, newest first, fetched page by page as they are taken: of any of these statuses and
        kinds, or of one, with all of these labels, reruns of `parent`, members of `sweep`. Times need a zone."""
        params = {
            "limit": page_size,
            "status": _each(status),
            "kind": _each(kind),
            "label": _pairs(labels),
            "parent": parent and _id(parent),
            "sweep": sweep and _id(sweep),
            "created_after": created_after and created_after.isoformat(),
            "created_before": created_before and created_before.isoformat(),
        }
        async for job in self._pages(Job, "/v1/jobs", params):
            yield job

    async def update(self, job: JobRef, changes: Mapping[str, Any], *, only_if_unchanged: bool = False) -> Job:
        """Change `display_name` and `labels` by a merge patch: what is left out stays, None removes, also one
        label. With `only_if_unchanged`, raises Changed when the job has another revision by now than the one given."""
        headers = {"Content-Type": "application/merge-patch+json"}
        if only_if_unchanged:
            if not isinstance(job, Job):
                raise TypeError("only_if_unchanged needs the job as it was read, not its id alone")
            headers["If-Match"] = f'W/"{job.revision}"'
        request = self._request("PATCH", _path(job), document=changes, headers=headers)
        # Twice is once, unless the first time makes the condition false.
        return parsed(Job, await self._answer(request, repeatable=not only_if_unchanged))

    async def cancel(self, job: JobRef) -> Job:
        """Ask for a job's end. Raises Conflict when it has ended by itself."""
        # Asked twice, the server says the same.
        request = self._request("POST", f"{_path(job)}/cancel")
        return parsed(Job, await self._answer(request, repeatable=True))

    async def retry(self, job: JobRef) -> Job:
        """Run a failed job again, as its next attempt."""
        return parsed(Job, await self._answer(self._request("POST", f"{_path(job)}/retry")))

    async def delete(self, job: JobRef) -> None:
        """Delete a job that is done, with its files, for good. One that is deleted already is no error: it may be that
        an earlier try did it, whose answer was lost."""
        try:
            await self._answer(self._request("DELETE", _path(job)))
        except Gone:
            return

    async def lineage(self, job: JobRef) -> Lineage:
        """All that the job was made from, and what was made of it directly."""
        return await self._get(Lineage, f"{_path(job)}/lineage")

    async def compare(self, jobs: Sequence[JobRef]) -> Comparison:
        """Two to eight finished jobs with their reports, in this order."""
        request = self._request("GET", "/v1/compare", params={"jobs": ",".join(map(_id, jobs))})
        return parsed(Comparison, await self._answer(request))

    # --- logs ---------------------------------------------------------------------------------------------------------

    async def events(self, job: JobRef, *, after: int = 0, page_size: int = PAGE_SIZE) -> AsyncGenerator[Event]:
        """The job's log so far, beyond the entry whose `seq` is `after`."""
        params = {"after": after, "limit": page_size}
        async for event in self._pages(Event, f"{_path(job)}/events", params, cursor="after"):
            yield event

    async def stream(self, job: JobRef, *, after: int = 0) -> AsyncGenerator[Event]:
        """The job's log as it grows, each entry once and in order, until the last one of a job that is done. A
        connection that ends before that is followed by another one, from the last entry on."""
        tries = self._tries()
        while True:
            parser = Parser()
            try:
                async with aclosing(self._stream_pieces(job, after)) as pieces:
                    async for piece in pieces:
                        tries = self._tries()  # as long as something comes, the patience starts anew
                        for sent in parser.feed(piece):
                            if sent.event == "end":
                                return
                            event = _event(sent.data)
                            if event.seq > after:
                                after = event.seq
                                yield event
            except (Unreachable, Problem) as error:
                pause = tries.pause_after(error)
                if pause is None:
                    raise
                await self._transport.sleep(pause)

    async def _stream_pieces(self, job: JobRef, after: int) -> AsyncGenerator[bytes]:
        """What one connection brings; it ends by an error, since only the log itself says where it ends."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        path = f"{_path(job)}/events/stream"
        request = self._request("GET", path, headers=headers, silence=STREAM_SILENCE_SECONDS)
        async with self._opened(request) as response, aclosing(self._transport.pieces(response)) as pieces:
            async for piece in pieces:
                yield piece
        raise Unreachable(f"{self.url} has ended the stream before the job's end.")

    # --- artifacts ----------------------------------------------------------------------------------------------------

    async def artifacts(self, job: JobRef) -> List[Artifact]:
        """What the job published; nothing until it has succeeded."""
        return [each async for each in self._pages(Artifact, f"{_path(job)}/artifacts", {})]

    async def download(self, job: JobRef, artifact: Artifact | str, path: AnyPath) -> Path:
        """Fetch an artifact, by its record or its name, and check it against its record's SHA-256. `path` is the file
        to write, or a folder that is there. Returns the file.

        The path only ever holds the whole and verified file; what is on its way is in `NAME.DIGEST.part` beside it,
        which a later call, also of another process, picks up. A file that is there already is not fetched again.
        """
        record = artifact if isinstance(artifact, Artifact) else await self._record(job, artifact)
        target = target_of(record, Path(path))
        download = Download(record, target)
        if await self._transport.disk(lambda: download.is_there):
            return target
        url = f"{_path(job)}/artifacts/{quote(record.name, safe='')}"
        tries = self._tries()
        while missing := await self._transport.disk(download.missing):
            try:
                await self._fetch(url, download)
                if await self._transport.disk(download.missing) == missing:
                    raise DownloadFailed(f"{record.name} ended {missing} bytes before its {record.size}.")
            except (Unreachable, Problem) as error:
                if await self._transport.disk(download.missing) < missing:
                    tries = self._tries()  # as long as something comes, the patience starts anew
                pause = tries.pause_after(error)
                if pause is None:
                    raise
                await self._transport.sleep(pause)
        return await self._transport.disk(download.finish)

    async def _record(self, job: JobRef, name: str) -> Artifact:
        records = await self.artifacts(job)
        for record in records:
            if record.name == name:
                return record
        known = ", ".join(each.name for each in records) or "none"
        raise DownloadFailed(f"{_id(job)} has no artifact {name!r}; it has: {known}.")

    async def _fetch(self, url: str, download: Download) -> None:
        """Append what is missing, or write all of it anew when the server sends the whole."""
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        have = await self._transport.disk(download.have)
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": download.etag}
        request = self._request("GET", url, headers=headers)
        # Redirects are followed here alone: a store may serve the bytes, but a redirected POST would become a GET.
        async with self._opened(request, follow_redirects=True) as response:
            if response.status_code != httpx.codes.PARTIAL_CONTENT:
                have = 0
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                raise DownloadFailed(f"{response.url} has sent another part than was asked for.")
            await self._transport.disk(partial(download.begin, have))
            async with aclosing(self._transport.pieces(response)) as pieces:
                async for piece in pieces:
                    await self._transport.disk(partial(download.append, piece))

    # --- the service --------------------------------------------------------------------------------------------------

    async def options(self) -> dict[str, Any]:
        """What a spec may ask for, with ranges and defaults."""
        return (await self._get(Resource, "/v1/options")).as_json()

    async def upload_dataset(
        self,
        path: AnyPath,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Dataset:
        """Send a data set, as an .npz or a zip of class folders, piece by piece. It can be used once its `status` is
        `ready`, which its job decides: wait for that. Raises OSError when the file cannot be read."""
        params = {"name": name, "label": _pairs(labels)}
        return await self._made(Dataset, "/v1/datasets", idempotency_key, params=params, file=Path(path))

    async def dataset(self, dataset_id: str) -> Dataset:
        """An uploaded data set as it is now."""
        return await self._get(Dataset, f"/v1/datasets/{quote(dataset_id, safe='')}")

    async def datasets(self) -> AsyncGenerator[Dataset]:
        """The uploaded data sets, newest first; those that need no upload are in `options`."""
        async for dataset in self._pages(Dataset, "/v1/datasets", {}):
            yield dataset

    async def delete_dataset(self, dataset_id: str) -> None:
        """Delete a data set that no job needs, for good. One that is deleted already is no error."""
        with suppress(Gone):
            await self._answer(self._request("DELETE", f"/v1/datasets/{quote(dataset_id, safe='')}"))

    async def system(self) -> System:
        """The queue, the workers and the versions."""
        return await self._get(System, "/v1/system")

    async def quotas(self) -> Quotas:
        """Each limit of the key's tenant, and what is in use of it."""
        return await self._get(Quotas, "/v1/quotas")

    # --- webhooks -----------------------------------------------------------------------------------------------------

    async def create_webhook(
        self,
        url: str,
        events: str | Sequence[str],
        *,
        description: str | None = None,
        idempotency_key: str | None = None,
    ) -> Webhook:
        """Have a URL told of these events, such as `job.succeeded`; once, however often the request has to be sent.
        Keep the `secret`: nothing tells it again, and `verify_webhook` needs it."""
        document = {"url": url, "events": _each(events), "description": description}
        return await self._made(Webhook, "/v1/webhooks", idempotency_key, document=document)

    async def webhook(self, webhook: WebhookRef) -> Webhook:
        """A webhook as it is now."""
        return await self._get(Webhook, _webhook_path(webhook))

    async def webhooks(self) -> List[Webhook]:
        """The webhooks of the key's tenant, newest first."""
        return [each async for each in self._pages(Webhook, "/v1/webhooks", {})]

    async def update_webhook(self, webhook: WebhookRef, changes: Mapping[str, Any]) -> Webhook:
        """Change `url`, `events`, `description` and `enabled` by a merge patch: what is left out stays."""
        headers = {"Content-Type": "application/merge-patch+json"}
        request = self._request("PATCH", _webhook_path(webhook), document=changes, headers=headers)
        return parsed(Webhook, await self._answer(request, repeatable=True))

    async def delete_webhook(self, webhook: WebhookRef) -> None:
        """Delete a webhook with all its deliveries. Raises NotFound also when an earlier try did it, whose answer was
        lost."""
        await self._answer(self._request("DELETE", _webhook_path(webhook)))

    async def rotate_webhook_secret(self, webhook: WebhookRef) -> Webhook:
        """Give a webhook a new `secret`; the one before signs for another day."""
        return parsed(Webhook, await self._answer(self._request("POST", f"{_webhook_path(webhook)}/rotate-secret")))

    async def test_webhook(self, webhook: WebhookRef) -> Delivery:
        """Have a `webhook.test` sent, once; what has become of it is among the `deliveries`."""
        return parsed(Delivery, await self._answer(self._request("POST", f"{_webhook_path(webhook)}/test")))

    async def deliveries(self, webhook: WebhookRef, *, page_size: int = PAGE_SIZE) -> AsyncGenerator[Delivery]:
        """What was sent to a webhook in the last 30 days, and what is to be; newest first."""
        async for delivery in self._pages(Delivery, f"{_webhook_path(webhook)}/deliveries", {"limit": page_size}):
            yield delivery

    async def redeliver(self, webhook: WebhookRef, delivery: Delivery | str) -> Delivery:
        """Have a delivery sent now, whatever has become of it."""
        request = self._request(
            "POST", f"{_webhook_path(webhook)}/deliveries/{quote(_id(delivery), safe='')}/redeliver"
        )
        return parsed(Delivery, await self._answer(request))


def _id(named: Job | Webhook | Delivery | str) -> str:
    return named if isinstance(named, str) else named.id


def _each(words: str | Sequence[str]) -> List[str]:
    """One word alone is no sequence of its letters."""
    return [words] if isinstance(words, str) else [*words]


def _pairs(labels: Mapping[str, str] | None) -> List[str]:
    return [f"{key}:{value}" for key, value in (labels or {}).items()]


def _path(job: JobRef) -> str:
    return f"/v1/jobs/{quote(_id(job), safe='')}"


def _webhook_path(webhook: WebhookRef) -> str:
    return f"/v1/webhooks/{quote(_id(webhook), safe='')}"


def _event(data: str) -> Event:
    try:
        return Event.model_validate_json(data)
    except ValidationError as error:
        raise NotSecateur("The stream has an entry that is none of a job's log.") from error


def _pace(response: httpx.Response) -> float:
    named = pause_named(response)
    return PACE_SECONDS if named is None else max(named, LEAST_PACE_SECONDS)
