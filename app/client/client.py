"""The client itself: requests, repeats, pages and downloads."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, cast
from urllib.parse import quote
from uuid import uuid4

import httpx

from app.client.errors import BadAddress, ClientError, DigestMismatch, DownloadFailed, NotSecateur, Problem, Unreachable
from app.client.resources import Artifact, Dataset, Event, Job, System, Validation

T = TypeVar("T")

POLL_SECONDS = 2.0
"""Between polls when the server names no time."""
LONGEST_PAUSE_SECONDS = 60.0
PATIENCE_SECONDS = 30.0
"""How long one request goes on trying, in all."""
_BUSY = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Client:
    """Talks to one server with one key. Use it as a context manager, or call `close`."""

    def __init__(self, url: str, api_key: str | None = None, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        address = _address(url)
        self.url = str(address).rstrip("/")
        self._patience = patience_seconds
        self._answered = False
        self._http = httpx.Client(
            base_url=address,
            headers=_headers(api_key),
            timeout=httpx.Timeout(30.0, connect=5.0),
            trust_env=address.host not in _LOOPBACK,  # a proxy cannot reach what listens here
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, spec: Mapping[str, Any]) -> Job:
        """Submit a job, once, however often the request has to be sent."""
        return cast(Job, self._post("/v1/jobs", spec, key=_new_key()))

    def upload_checkpoint(
        self, path: Path, *, display_name: str | None = None, labels: Mapping[str, str] | None = None
    ) -> Job:
        """Send a state dict of the cnn architecture, as safetensors or as torch.save writes it, piece by piece; returns
        the job that imports it: one, however often the file has to be sent. Raises OSError when it cannot be read."""
        query: dict[str, Any] = {"label": [f"{key}:{value}" for key, value in (labels or {}).items()]}
        if display_name is not None:
            query["display_name"] = display_name
        headers = {"Content-Type": "application/octet-stream", "Idempotency-Key": _new_key()}

        def once() -> httpx.Response:
            with path.open("rb") as file:
                return self._checked(self._http.post("/v1/checkpoints", params=query, content=file, headers=headers))

        return cast(Job, _object(self._retrying(once)))

    def validate(self, spec: Mapping[str, Any]) -> Validation:
        """The resolved spec and an estimate; nothing is stored."""
        return cast(Validation, self._post("/v1/jobs?validate_only=true", spec))

    def cancel(self, job_id: str) -> Job:
        return cast(Job, self._post(f"{_job(job_id)}/cancel"))

    def retry(self, job_id: str) -> Job:
        """Run a failed job again, as its next attempt."""
        return cast(Job, self._post(f"{_job(job_id)}/retry"))

    def rerun(self, job_id: str) -> Job:
        """Submit the spec of a job as a new one."""
        return cast(Job, self._post(f"{_job(job_id)}/rerun", key=_new_key()))

    def delete(self, job_id: str) -> None:
        """Delete a job that is done, with its files, for good."""
        self._answer("DELETE", _job(job_id))

    def get(self, job_id: str) -> Job:
        return cast(Job, self._get(_job(job_id)))

    def list(self, *, status: Sequence[str] = (), kind: Sequence[str] = (), page_size: int = 100) -> Iterator[Job]:
        """All jobs of the key's tenant, newest first, fetched page by page as they are taken."""
        query = {"limit": page_size, "status": list(status), "kind": list(kind)}
        return cast(Iterator[Job], self._pages("/v1/jobs", query))

    def events(self, job_id: str) -> Iterator[Event]:
        return cast(Iterator[Event], self._pages(f"{_job(job_id)}/events", {"limit": 100}))

    def artifacts(self, job_id: str) -> Iterator[Artifact]:
        return cast(Iterator[Artifact], self._pages(f"{_job(job_id)}/artifacts", {}))

    def options(self) -> dict[str, Any]:
        return self._get("/v1/options")

    def datasets(self) -> Iterator[Dataset]:
        return cast(Iterator[Dataset], self._pages("/v1/datasets", {}))

    def system(self) -> System:
        return cast(System, self._get("/v1/system"))

    def wait(self, *job_ids: str, every: float | None = None) -> Iterator[Job]:
        """Poll until each job is done, yielding every state seen, so that callers can draw progress.

        Loops on `done`, so a status or phase that this client does not know cannot hang it. Waits as long between
        polls as the server asks, unless `every` says otherwise (for a server of one's own).
        """
        waiting = list(dict.fromkeys(job_ids))
        while waiting:
            pause = 0.0
            for job_id in tuple(waiting):
                response = self._answer("GET", _job(job_id))
                job = cast(Job, _object(response))
                if job["done"]:
                    waiting.remove(job_id)
                pause = max(pause, _retry_after(response) or 0.0)
                yield job
            if waiting:
                time.sleep(every if every is not None else pause or POLL_SECONDS)

    def download(self, job_id: str, artifact: Artifact, folder: Path) -> Path:
        """Fetch an artifact into a folder, and check it against its record's digest.

        The name only ever holds a whole and verified file; what is on its way is in `NAME.DIGEST.part`, which a later
        call picks up where this one was interrupted. A file that is there already is not fetched again.
        """
        target = folder / _file_name(artifact["name"])
        if target.is_file() and _sha256(target) == artifact["sha256"]:
            return target
        folder.mkdir(parents=True, exist_ok=True)
        # With the digest in its name, what an earlier call left can only be of this very file.
        part = target.with_name(f"{target.name}.{artifact['sha256'][:12]}.part")
        self._fetch(f"{_job(job_id)}/artifacts/{quote(artifact['name'], safe='')}", part, artifact["size"])
        if (found := _sha256(part)) != artifact["sha256"]:
            part.unlink()
            raise DigestMismatch(
                f"{artifact['name']} came damaged: its sha256 is {found}, and should be {artifact['sha256']}."
            )
        return part.replace(target)

    def _fetch(self, url: str, part: Path, size: int) -> None:
        """Bring `part` to its full size."""
        part.touch()
        while (have := part.stat().st_size) < size:
            try:
                self._retrying(lambda: self._stream(url, part))
            except Unreachable:
                # As long as bytes come through, the patience starts anew.
                if part.stat().st_size <= have:
                    raise
            else:
                if part.stat().st_size <= have:
                    raise DownloadFailed(f"{part.name} ended after {have} of {size} bytes.")

    def _stream(self, url: str, part: Path) -> None:
        """Append what `part` lacks, or write all of it anew when the server sends the whole."""
        headers = {"Accept-Encoding": "identity"}
        if have := part.stat().st_size:
            headers["Range"] = f"bytes={have}-"
        # Redirects are followed here alone: a store may serve the bytes, but a redirected POST would become a GET.
        with self._http.stream("GET", url, headers=headers, follow_redirects=True) as response:
            if not response.is_success:
                response.read()
                raise _problem(response)
            self._answered = True
            resumed = response.status_code == HTTPStatus.PARTIAL_CONTENT
            with part.open("ab" if resumed else "wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)

    def _pages(self, path: str, query: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        response = self._answer("GET", path, params=query)
        while True:
            yield from _object(response).get("items", ())
            if "next" not in response.links:
                return
            # A path below the server's address, which has the query in it.
            response = self._answer("GET", response.links["next"]["url"])

    def _get(self, path: str) -> dict[str, Any]:
        return _object(self._answer("GET", path))

    def _post(self, path: str, body: Mapping[str, Any] | None = None, *, key: str | None = None) -> dict[str, Any]:
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        return _object(self._answer("POST", path, content=content, key=key))

    def _answer(
        self,
        method: Literal["GET", "POST", "DELETE"],
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        key: str | None = None,
    ) -> httpx.Response:
        """With an idempotency key, a request may be sent as often as a read."""
        headers = {} if content is None else {"Content-Type": "application/json"}
        if key is not None:
            headers["Idempotency-Key"] = key

        def once() -> httpx.Response:
            return self._checked(self._http.request(method, path, params=params, content=content, headers=headers))

        return self._retrying(once) if method == "GET" or key is not None else self._translated(once)

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if not response.is_success:
            raise _problem(response)
        self._answered = True
        return response

    def _retrying(self, once: Callable[[], T]) -> T:
        """Repeat what may be repeated while the connection breaks or the server is busy, within the patience.

        A server that never answered is not waited for: most likely its address is wrong or it does not run.
        """
        deadline, pause = time.monotonic() + self._patience, 0.25
        while True:
            try:
                return self._translated(once)
            except (Unreachable, Problem) as error:
                delay = _worth_waiting(error, pause)
                if delay is None or (isinstance(error, Unreachable) and not self._answered):
                    raise
                if time.monotonic() + delay > deadline:
                    raise
            time.sleep(delay)
            pause = min(2 * pause, 5.0)

    def _translated(self, once: Callable[[], T]) -> T:
        try:
            return once()
        except httpx.RequestError as error:
            raise Unreachable(f"No answer from {self.url}: {error or type(error).__name__}.") from error


def _worth_waiting(error: Unreachable | Problem, pause: float) -> float | None:
    """How long to wait before the same read may go well; None when it will not."""
    if isinstance(error, Unreachable):
        return pause
    if error.status in _BUSY:
        return pause if error.retry_after is None else error.retry_after
    return None


def _address(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise BadAddress(f"{url!r} is no URL: {error}.") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise BadAddress(f"{url!r} is no server's address: it must look like http://127.0.0.1:8000.")
    return address


def _headers(api_key: str | None) -> dict[str, str]:
    headers = {"Accept": "application/json", "User-Agent": "secateur"}
    if api_key is None:
        return headers
    if not (api_key.isascii() and api_key.isprintable() and " " not in api_key and api_key):
        raise BadAddress("The API key is empty or holds characters that no key has.")
    return {**headers, "Authorization": f"Bearer {api_key}"}


def _new_key() -> str:
    return uuid4().hex


def _job(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _file_name(name: str) -> str:
    # The name comes from the server and becomes a path here.
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise DownloadFailed(f"The server names an artifact {name!r}, which is no file's name.")
    return name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise NotSecateur(f"{response.request.url} answered {response.status_code} with something that is no resource.")
    return body


def _problem(response: httpx.Response) -> ClientError:
    """What a refusal says. A gateway's own error page is none of the API's, but its status still counts."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and "title" in body:
        return Problem(response.status_code, body, _retry_after(response))
    if response.status_code in _BUSY:
        return Problem(response.status_code, {"title": "The server is busy"}, _retry_after(response))
    return NotSecateur(
        f"{response.request.url} answered {response.status_code} {response.reason_phrase}, "
        "and not as a Secateur server does."
    )


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, at most a minute; the header's other form, a date, is not one that this API sends."""
    value = response.headers.get("Retry-After", "")
    return min(float(value), LONGEST_PAUSE_SECONDS) if value.isascii() and value.isdigit() else None
