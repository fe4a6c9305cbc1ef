"""Who may do what, asked of every operation that there is: they are walked out of the description, so that a new one is
held to the same rules by itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import httpx
import pytest

from app.db.session import session_scope
from app.local import Stack
from app.services.keys import Scope, create_key, revoke_key
from tests.api.conftest import client_with, sqlalchemy_url
from tests.api.test_uploads import OCTETS
from tests.engine.data_sets import arrays, npz
from tests.specs import Document, submit, train_spec

OF_THE_REQUEST = ("request_id", "instance")
UNKNOWN_KEY = "sk_000000000000_" + "A" * 43
NOWHERE = dict.fromkeys(("job_id", "dataset_id"), "job_" + 32 * "0") | {
    "webhook_id": "wh_" + 32 * "0",
    "delivery_id": "msg_" + 32 * "0",
}


class Operation(NamedTuple):
    method: str
    path: str
    about_the_service: bool
    """It tells the same to every tenant."""

    def url(self, ids: dict[str, str]) -> str:
        return self.path.format_map(ids)


@pytest.fixture(scope="module")
def operations(idle_http: httpx.Client) -> list[Operation]:
    """All that want a key."""
    document: Document = idle_http.get("/openapi.json").json()
    found = [
        Operation(method.upper(), path, "{" not in path or path.startswith("/v1/schemas"))
        for path, operations in document["paths"].items()
        for method in operations
        if path.startswith("/v1/")
    ]
    assert len(found) > 15
    return found


@pytest.fixture
def ids(newcomer: httpx.Client) -> dict[str, str]:
    """The newcomer's own, by the word in a path that stands for it: one that is missing here fails all tests below."""
    dataset = newcomer.post("/v1/datasets", content=npz(arrays()), headers=OCTETS).raise_for_status().json()
    webhook = {"url": "https://hook.example/", "events": ["job.failed"]}
    webhook_id = newcomer.post("/v1/webhooks", json=webhook).json()["id"]
    return {
        "job_id": submit(newcomer, train_spec())["id"],
        "dataset_id": dataset["id"],
        "webhook_id": webhook_id,
        "delivery_id": newcomer.post(f"/v1/webhooks/{webhook_id}/test").json()["id"],
        "name": "report",
    }


def _made(running: Stack, **wishes: object) -> tuple[str, str]:
    with session_scope(sqlalchemy_url(running)) as session:
        row, token = create_key(session, name="test", **wishes)  # type: ignore[arg-type]
        return row.id, token


@pytest.fixture
def refused_keys(idle_service: Stack) -> dict[str, str | None]:
    _, expired = _made(idle_service, expires_at=datetime.now(UTC) - timedelta(seconds=1), scopes=list(Scope))
    key_id, revoked = _made(idle_service, scopes=list(Scope))
    _, good = _made(idle_service, scopes=list(Scope))
    with session_scope(sqlalchemy_url(idle_service)) as session:
        assert revoke_key(session, key_id)
    wrong = good[:-1] + ("A" if good[-1] != "A" else "B")
    return {"none": None, "unknown": UNKNOWN_KEY, "wrong": wrong, "expired": expired, "revoked": revoked}


@pytest.fixture
def anybody(idle_service: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=idle_service.url, timeout=30, trust_env=False, verify=False) as client:
        yield client


def test_no_operation_answers_without_a_key_that_works(
    anybody: httpx.Client, refused_keys: dict[str, str | None], operations: list[Operation], ids: dict[str, str]
) -> None:
    told = set()
    for operation in operations:
        for kind, key in refused_keys.items():
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            answer = anybody.request(operation.method, operation.url(ids), headers=headers)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), (operation, kind)
            told.add(str({name: value for name, value in answer.json().items() if name not in OF_THE_REQUEST}))

    assert len(told) == 1  # whatever the reason
    assert "unauthenticated" in told.pop()


def test_every_operation_wants_a_scope(idle_service: Stack, operations: list[Operation], ids: dict[str, str]) -> None:
    opened: dict[str, set[Operation]] = {}
    for scope in (Scope.JOBS_READ, Scope.JOBS_WRITE, Scope.ARTIFACTS_READ):
        _, token = _made(idle_service, scopes=[scope], tenant="elsewhere")
        with client_with(idle_service, token) as client:
            answers = {each: client.request(each.method, each.url(ids)) for each in operations}
        refused = {each: answer for each, answer in answers.items() if answer.status_code == 403}
        assert all(answer.json()["code"] == "forbidden" for answer in refused.values())
        opened[scope] = set(operations) - set(refused)

    assert all(sum(each in may for may in opened.values()) == 1 for each in operations)
    assert {each.method for each in opened[Scope.JOBS_WRITE]} <= {"POST", "PATCH", "DELETE", "PUT"}
    assert {each.method for each in opened[Scope.JOBS_READ] | opened[Scope.ARTIFACTS_READ]} == {"GET"}


def test_what_is_anothers_is_not_there(
    stranger: httpx.Client, newcomer: httpx.Client, operations: list[Operation], ids: dict[str, str]
) -> None:
    private = [each for each in operations if not each.about_the_service]
    before = newcomer.get(f"/v1/jobs/{ids['job_id']}").json()
    assert len(private) > 10

    for each in private:
        answer = stranger.request(each.method, each.url(ids), json={})
        missing = stranger.request(each.method, each.url(ids | NOWHERE), json={})
        assert (answer.status_code, missing.status_code) == (404, 404), each
        assert _apart(answer, ids) == _apart(missing, NOWHERE), each

    assert newcomer.get(f"/v1/jobs/{ids['job_id']}").json() == before


def _apart(answer: httpx.Response, ids: dict[str, str]) -> str:
    """The body without what tells two requests apart."""
    told = answer.json() if answer.content else {}
    text = str({name: value for name, value in told.items() if name != "request_id"})
    for word in NOWHERE:
        text = text.replace(ids[word], "ID")
    return text
