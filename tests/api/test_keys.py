from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest

from app.db.session import session_scope
from app.local import Stack
from app.services.keys import Scope, create_key, revoke_key
from tests.api.conftest import client_with, sqlalchemy_url
from tests.specs import submit, train_spec
from tests.waiting import wait_until

MakeKey = Callable[..., tuple[str, str]]


@pytest.fixture
def make_key(idle_service: Stack) -> MakeKey:
    def make(**wishes: Any) -> tuple[str, str]:
        with session_scope(sqlalchemy_url(idle_service)) as session:
            row, token = create_key(session, name="test", **wishes)
            return row.id, token

    return make


def _status(running: Stack, headers: Mapping[str, str | bytes]) -> int:
    pairs = [(name.encode(), value.encode() if isinstance(value, str) else value) for name, value in headers.items()]
    answer = httpx.get(f"{running.url}/v1/jobs", headers=pairs, trust_env=False, verify=False)
    if answer.status_code == 401:
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json()["code"] == "unauthenticated"
    return answer.status_code


WRONG = {
    "none": {},
    "empty": {"Authorization": "Bearer"},
    "another scheme": {"Authorization": "Basic c2s6c2s="},
    "no key's form": {"Authorization": "Bearer hunter2"},
    "unknown": {"Authorization": "Bearer sk_000000000000_" + "A" * 43},
    "not ASCII": {"Authorization": "Bearer skü"},
    "huge": {"Authorization": "Bearer " + "s" * 5_000},
}


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
def test_a_request_without_a_valid_key_is_refused(idle_service: Stack, headers: dict[str, str]) -> None:
    assert _status(idle_service, {name: value.encode() for name, value in headers.items()}) == 401


def test_a_wrong_secret_under_a_known_id_is_refused(idle_service: Stack) -> None:
    key = idle_service.api_key
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")

    assert _status(idle_service, {"Authorization": f"Bearer {key}"}) == 200
    assert _status(idle_service, {"Authorization": f"Bearer {wrong}"}) == 401


@pytest.mark.parametrize(
    "path", ["/v1/jobs", "/v1/jobs/x", "/v1/options", "/v1/datasets", "/v1/system", "/v1/schemas/report"]
)
def test_every_resource_wants_a_key(idle_service: Stack, path: str) -> None:
    assert httpx.get(idle_service.url + path, trust_env=False, verify=False).status_code == 401


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/openapi.json", "/docs"])
def test_health_and_reference_want_none(idle_service: Stack, path: str) -> None:
    assert httpx.get(idle_service.url + path, trust_env=False, verify=False).status_code == 200


def test_a_revoked_key_no_longer_works(idle_service: Stack, make_key: MakeKey) -> None:
    key_id, token = make_key()
    assert _status(idle_service, {"Authorization": f"Bearer {token}"}) == 200

    with session_scope(sqlalchemy_url(idle_service)) as session:
        assert revoke_key(session, key_id)

    assert _status(idle_service, {"Authorization": f"Bearer {token}"}) == 401


def test_a_key_ends_when_it_expires(idle_service: Stack, make_key: MakeKey) -> None:
    _, past = make_key(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    _, future = make_key(expires_at=datetime.now(UTC) + timedelta(days=1))

    assert _status(idle_service, {"Authorization": f"Bearer {past}"}) == 401
    assert _status(idle_service, {"Authorization": f"Bearer {future}"}) == 200


def test_a_reader_may_not_write(idle_service: Stack, make_key: MakeKey) -> None:
    _, token = make_key(scopes=[Scope.JOBS_READ])
    with client_with(idle_service, token) as reader:
        assert reader.get("/v1/jobs").status_code == 200
        refused = reader.post("/v1/jobs", json=train_spec())

    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert "jobs:write" in refused.json()["detail"]


def test_reading_jobs_is_not_reading_artifacts(idle_service: Stack, idle_http: httpx.Client, make_key: MakeKey) -> None:
    job = submit(idle_http, train_spec())
    _, token = make_key(scopes=[Scope.JOBS_READ])

    with client_with(idle_service, token) as reader:
        assert reader.get(f"{job['links']['artifacts']}/report.json").status_code == 403


def test_the_database_holds_no_secret(idle_service: Stack, make_key: MakeKey) -> None:
    key_id, token = make_key()
    secret = token.split("_", 2)[2]

    with psycopg.connect(idle_service.database_url) as connection:
        row = connection.execute(
            "SELECT api_keys::text, secret_sha256 FROM api_keys WHERE id = %s", [key_id]
        ).fetchone()

    assert row is not None
    assert secret not in row[0]
    assert row[1] == hashlib.sha256(secret.encode()).hexdigest()


def test_the_log_holds_no_key(idle_service: Stack, idle_http: httpx.Client) -> None:
    idle_http.get("/v1/jobs", headers={"X-Request-Id": "looked-for"})

    path = idle_service.state_dir / "logs" / "api.log"
    wait_until(lambda: "looked-for" in path.read_text(), timeout=5, what="the request is logged")
    log = path.read_text()
    assert idle_service.api_key.split("_", 2)[2] not in log
