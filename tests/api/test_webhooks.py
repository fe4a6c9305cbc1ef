"""Webhooks over HTTP, with a receiver that verifies as its clients would."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import ANY

import httpx
import psycopg
from standardwebhooks import Webhook

from app.local import Stack
from app.local.ports import usable_port
from tests.endpoint import endpoint
from tests.specs import Document, submit, train_spec
from tests.waiting import wait_until


def _create(http: httpx.Client, url: str = "https://hook.example/", **fields: object) -> Document:
    answer = http.post("/v1/webhooks", json={"url": url, "events": ["job.cancelled"], **fields})
    assert answer.status_code == 201, answer.text
    assert answer.headers["Location"] == f"/v1/webhooks/{answer.json()['id']}"
    webhook: Document = answer.json()
    return webhook


def _delivered(http: httpx.Client, webhook_id: str) -> Document:
    """The newest delivery, once it is settled."""

    def look() -> Document | None:
        items = http.get(f"/v1/webhooks/{webhook_id}/deliveries").json()["items"]
        return items[0] if items and items[0]["status"] != "pending" else None

    return wait_until(look, timeout=20, what="a delivery is settled")


def test_the_end_of_a_job_is_told_and_can_be_told_again(newcomer: httpx.Client) -> None:
    with endpoint() as receiver:
        webhook = _create(newcomer, receiver.url)
        job = submit(newcomer, train_spec())
        newcomer.post(job["links"]["cancel"]).raise_for_status()
        [request] = receiver.wait_for(1)
        delivery = _delivered(newcomer, webhook["id"])
        again = newcomer.post(f"/v1/webhooks/{webhook['id']}/deliveries/{delivery['id']}/redeliver")
        _, repeated = receiver.wait_for(2)

    event = Webhook(webhook["secret"]).verify(request.body, dict(request.headers))
    assert event["data"] == {"job_id": job["id"], "kind": "train", "status": "cancelled", "href": job["links"]["self"]}
    assert delivery == {
        "id": request.headers["webhook-id"],
        "event": "job.cancelled",
        "job_id": job["id"],
        "status": "succeeded",
        "attempts": 1,
        "next_attempt_at": None,
        "last_attempt_at": ANY,
        "response_status": 204,
        "error": None,
        "created_at": ANY,
    }
    assert again.status_code == 202
    assert again.json()["status"] == "pending"
    assert repeated.headers["webhook-id"] == delivery["id"]


def test_a_test_shows_what_is_wrong(newcomer: httpx.Client) -> None:
    with endpoint() as receiver:
        receiver.status = 410
        webhook = _create(newcomer, receiver.url)
        answer = newcomer.post(f"/v1/webhooks/{webhook['id']}/test")
        delivery = _delivered(newcomer, webhook["id"])

    assert (answer.status_code, answer.json()["event"]) == (202, "webhook.test")
    assert (delivery["status"], delivery["response_status"]) == ("failed", 410)
    assert delivery["error"] == "the endpoint answered 410"
    found = newcomer.get(f"/v1/webhooks/{webhook['id']}").json()
    assert (found["enabled"], found["disabled_reason"]) == (False, "gone")
    refused = newcomer.post(f"/v1/webhooks/{webhook['id']}/test")
    assert (refused.status_code, refused.json()["code"]) == (409, "webhook_disabled")


def test_a_secret_is_shown_when_it_is_made_and_never_again(newcomer: httpx.Client) -> None:
    webhook = _create(newcomer)
    path = f"/v1/webhooks/{webhook['id']}"

    rotated = newcomer.post(f"{path}/rotate-secret").json()

    assert webhook["secret"].startswith("whsec_")
    assert rotated["secret"].startswith("whsec_")
    assert rotated["secret"] != webhook["secret"]
    assert rotated["previous_secret_expires_at"] is not None
    patched = newcomer.patch(path, json={"description": "ours"})
    for answer in (newcomer.get(path), newcomer.get("/v1/webhooks"), patched, newcomer.get(f"{path}/deliveries")):
        assert answer.status_code == 200
        assert "whsec_" not in answer.text


def test_a_webhook_is_changed_by_a_merge_patch(newcomer: httpx.Client) -> None:
    webhook = _create(newcomer, description="first")
    path = f"/v1/webhooks/{webhook['id']}"
    changed = newcomer.patch(path, json={"url": "https://other.example/x", "events": ["job.failed"], "enabled": False})

    assert changed.json() == {
        **{name: value for name, value in webhook.items() if name != "secret"},
        "url": "https://other.example/x",
        "events": ["job.failed"],
        "enabled": False,
        "disabled_reason": "client",
        "disabled_at": ANY,
        "updated_at": ANY,
    }
    assert changed.json()["description"] == "first"
    enabled = newcomer.patch(path, json={"enabled": True, "description": None}).json()
    assert (enabled["enabled"], enabled["disabled_reason"], enabled["disabled_at"]) == (True, None, None)
    assert enabled["description"] is None
    wrong = newcomer.patch(path, json={"url": "gopher://x", "enable": True})
    assert wrong.status_code == 422
    assert [(error["pointer"], error["code"]) for error in wrong.json()["errors"]] == [
        ("/url", "string_pattern_mismatch"),
        ("/enable", "unknown_field"),
    ]


def test_the_deliveries_of_a_webhook_are_its_own(newcomer: httpx.Client, stranger: httpx.Client) -> None:
    webhook_id, other = _create(newcomer)["id"], _create(newcomer)["id"]
    delivery_id = newcomer.post(f"/v1/webhooks/{webhook_id}/test").json()["id"]

    answer = newcomer.post(f"/v1/webhooks/{other}/deliveries/{delivery_id}/redeliver")

    assert (answer.status_code, answer.json()["code"]) == (404, "delivery_not_found")
    assert webhook_id not in stranger.get("/v1/webhooks").text


def test_a_tenant_has_so_many_webhooks_and_no_more(newcomer: httpx.Client) -> None:
    webhooks = [_create(newcomer)["id"] for _ in range(16)]

    refused = newcomer.post("/v1/webhooks", json={"url": "https://hook.example", "events": ["job.failed"]})

    assert (refused.status_code, refused.json()["code"], refused.json()["limit"]) == (409, "too_many_webhooks", 16)
    page = newcomer.get("/v1/webhooks").json()
    assert ([webhook["id"] for webhook in page["items"]], page["next_cursor"]) == (webhooks[::-1], None)
    assert newcomer.delete(f"/v1/webhooks/{webhooks[0]}").status_code == 204
    assert newcomer.get(f"/v1/webhooks/{webhooks[0]}").status_code == 404
    _create(newcomer)


def test_deliveries_are_paged_newest_first(newcomer: httpx.Client) -> None:
    webhook, other = _create(newcomer)["id"], _create(newcomer)["id"]
    sent = [newcomer.post(f"/v1/webhooks/{webhook}/test").json()["id"] for _ in range(3)]

    first = newcomer.get(f"/v1/webhooks/{webhook}/deliveries", params={"limit": 2})
    second = newcomer.get(first.links["next"]["url"])

    assert [delivery["id"] for delivery in first.json()["items"]] == [sent[2], sent[1]]
    assert [delivery["id"] for delivery in second.json()["items"]] == [sent[0]]
    assert second.json()["next_cursor"] is None
    cursor = first.json()["next_cursor"]
    for path in (f"/v1/webhooks/{other}/deliveries", "/v1/jobs"):
        answer = newcomer.get(path, params={"cursor": cursor})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor"), path


def test_the_receiver_of_the_documentation_receives(newcomer: httpx.Client) -> None:
    documentation = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    [program] = [text for text in re.findall(r"```python\n(.*?)```", documentation, re.DOTALL) if "Receiver" in text]
    port = usable_port("127.0.0.1", 0)
    webhook = _create(newcomer, f"http://127.0.0.1:{port}/")
    command = [sys.executable, "-c", program.replace("8800", str(port))]
    environment = os.environ | {"WEBHOOK_SECRET": webhook["secret"]}

    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as receiver:
        try:
            wait_until(lambda: _listens(port), timeout=20, what="the receiver listens")
            newcomer.post(f"/v1/webhooks/{webhook['id']}/test").raise_for_status()
            assert _delivered(newcomer, webhook["id"])["response_status"] == 204
            forged = httpx.post(f"http://127.0.0.1:{port}/", content=b"{}", trust_env=False)
        finally:
            receiver.terminate()
        assert receiver.stdout is not None
        assert receiver.stdout.read() == b"webhook.test None\n"
    assert forged.status_code == 400


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _post(http: httpx.Client, key: str, url: str = "https://hook.example/") -> httpx.Response:
    return http.post("/v1/webhooks", json={"url": url, "events": ["job.failed"]}, headers={"Idempotency-Key": key})


def test_equal_requests_at_once_make_one_webhook_whose_secret_all_are_told(newcomer: httpx.Client) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: _post(newcomer, "once"), range(20)))

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["Location"] for answer in answers}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    assert [webhook["id"] for webhook in newcomer.get("/v1/webhooks").json()["items"]] == [answers[0].json()["id"]]


def test_another_webhook_with_the_same_key_is_refused(newcomer: httpx.Client) -> None:
    _post(newcomer, "once")
    other = _post(newcomer, "once", "https://other.example/")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(newcomer.get("/v1/webhooks").json()["items"]) == 1


def test_a_repeated_request_is_told_of_the_webhook_as_it_is_and_of_none_that_is_deleted(newcomer: httpx.Client) -> None:
    path = _post(newcomer, "once").headers["Location"]
    rotated = newcomer.post(f"{path}/rotate-secret").json()
    assert _post(newcomer, "once").json() == rotated

    newcomer.delete(path)
    gone = _post(newcomer, "once")
    assert (gone.status_code, gone.json()["code"]) == (404, "webhook_not_found")


def test_no_secret_is_kept_beside_its_webhook(idle_service: Stack, newcomer: httpx.Client) -> None:
    webhook = _post(newcomer, "once").json()
    with psycopg.connect(idle_service.database_url) as connection:
        query = "SELECT idempotency_keys::text FROM idempotency_keys WHERE job_id = %s"
        [[kept]] = connection.execute(query, [webhook["id"]]).fetchall()
    assert webhook["secret"] not in kept
