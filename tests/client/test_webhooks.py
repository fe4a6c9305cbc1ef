"""Webhooks by the client: registered with the real service, and verified where they arrive."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from standardwebhooks import Webhook as Public

from app.core.signing import new_secret, signature
from app.local import Stack
from secateur_client import BadSignature, Client, Delivery, NotFound, Problem, verify_webhook
from tests.client.conftest import Connect, Reply, Told
from tests.client.proxy import cutting
from tests.endpoint import Endpoint, endpoint
from tests.specs import submit, train_spec
from tests.waiting import wait_until

SECRET = new_secret()


@pytest.fixture
def receiver() -> Iterator[Endpoint]:
    with endpoint() as running:
        yield running


def test_a_webhook_is_told_of_a_job_and_its_receiver_verifies_it(
    idle_service: Stack, idle_http: httpx.Client, connect: Connect, receiver: Endpoint
) -> None:
    with connect(idle_service.url, idle_service.api_key) as client:
        webhook = client.create_webhook(receiver.url, ["job.cancelled"], description="ours")
        job = submit(idle_http, train_spec())
        client.cancel(job["id"])
        [request] = receiver.wait_for(1)
        assert webhook.secret is not None
        event = verify_webhook(webhook.secret, request.headers, request.body)
        assert (event.type, event.data["job_id"]) == ("job.cancelled", job["id"])

        rotated = client.rotate_webhook_secret(webhook)
        assert rotated.secret not in (None, webhook.secret)
        sent = client.test_webhook(webhook)
        request = receiver.wait_for(2)[1]
        for secret in (webhook.secret, rotated.secret):
            assert verify_webhook(str(secret), request.headers, request.body).type == "webhook.test"
        assert _settled(client, webhook.id).id == sent.id

        assert client.redeliver(webhook, sent).status == "pending"
        assert receiver.wait_for(3)[2].headers["webhook-id"] == sent.id
        assert len(list(client.deliveries(webhook, page_size=1))) == 2
        client.delete_webhook(webhook)


def _settled(client: Client, webhook_id: str) -> Delivery:
    """The newest delivery, once it is."""

    def look() -> Delivery | None:
        newest = next(iter(client.deliveries(webhook_id)))
        return newest if newest.status != "pending" else None

    return wait_until(look, timeout=20, what="a delivery is settled")


def test_webhooks_are_listed_changed_and_deleted(idle_service: Stack, connect: Connect) -> None:
    with connect(idle_service.url, idle_service.api_key) as client:
        webhook = client.create_webhook("https://hook.example/", "job.failed")
        assert client.webhook(webhook).as_json() == {
            name: value for name, value in webhook.as_json().items() if name != "secret"
        }
        changed = client.update_webhook(webhook, {"enabled": False, "description": "off"})
        assert (changed.enabled, changed.disabled_reason, changed.description) == (False, "client", "off")
        assert client.webhooks()[0] == changed
        client.delete_webhook(webhook.id)
        with pytest.raises(NotFound):
            client.delete_webhook(webhook.id)


def test_a_registration_whose_answer_is_lost_makes_one_webhook(idle_service: Stack, connect: Connect) -> None:
    url = f"https://{uuid4().hex}.example/"
    with cutting(idle_service.url, 0, 40) as proxy, connect(proxy.url, idle_service.api_key) as client:
        webhook = client.create_webhook(url, ["job.failed"])
        assert [each.id for each in client.webhooks() if each.url == url] == [webhook.id]
        client.delete_webhook(webhook)
    assert webhook.secret is not None


def test_a_secret_is_in_no_traceback(idle_service: Stack, connect: Connect) -> None:
    with connect(idle_service.url, idle_service.api_key) as client:
        webhook = client.create_webhook("https://hook.example/", ["job.failed"])
        client.delete_webhook(webhook)
    assert "whsec_" not in repr(webhook)


@pytest.mark.parametrize(
    ("ask", "times"),
    [
        (lambda client: client.test_webhook("w"), 1),  # a second time would be another test
        (lambda client: client.redeliver("w", "d"), 1),
        (lambda client: client.rotate_webhook_secret("w"), 1),  # and this would end the secret that still signs
        (lambda client: client.update_webhook("w", {"enabled": True}), 2),
        (lambda client: client.delete_webhook("w"), 2),
    ],
)
def test_what_is_asked_of_a_webhook_is_repeated_only_where_twice_is_once(
    told: Told, connect: Connect, ask: Callable[[Client], object], times: int
) -> None:
    refused = {"Content-Type": "application/json", "Retry-After": "0"}
    told.replies = [Reply(503, b"", {"Retry-After": "0"}), Reply(409, b'{"title": "Refused"}', refused)]
    with connect(told.url) as client, pytest.raises(Problem):
        ask(client)
    assert len(told.requests) == times


def test_the_limits_of_the_tenant_are_told(idle_service: Stack, connect: Connect) -> None:
    with connect(idle_service.url, idle_service.api_key) as client:
        quotas = client.quotas()
    assert (quotas.queued_jobs.limit, quotas.requests_per_minute.limit) == (None, 60_000)
    assert quotas.running_jobs.in_use == 0


# --- verifying -------------------------------------------------------------------------------------------------------

BODY = json.dumps({"type": "job.failed", "timestamp": "2026-01-01T00:00:00Z", "data": {"job_id": "j"}}).encode()


def _headers(body: bytes = BODY, *, age: int = 0, secret: str = SECRET) -> dict[str, str]:
    sent = int(time.time()) - age
    return {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": str(sent),
        "Webhook-Signature": signature(secret, "msg_1", sent, body),
    }


def test_what_the_public_package_takes_is_taken() -> None:
    assert verify_webhook(SECRET, _headers(), BODY).as_json() == Public(SECRET).verify(BODY, _headers())
    either = _headers()["Webhook-Signature"] + " " + _headers(secret=new_secret())["Webhook-Signature"]
    assert verify_webhook(SECRET, _headers() | {"Webhook-Signature": either}, BODY).type == "job.failed"


@pytest.mark.parametrize(
    ("made", "changes", "said"),
    [
        ({"secret": new_secret()}, {}, "No signature"),
        ({"body": BODY + b" "}, {}, "No signature"),
        ({}, {"Webhook-Id": "msg_2"}, "No signature"),
        ({}, {"Webhook-Timestamp": str(int(time.time()) + 9)}, "No signature"),
        ({}, {"Webhook-Signature": ""}, "No signature"),
        ({}, {"Webhook-Signature": "v2,AAAA v1,AAAA"}, "No signature"),
        ({}, {"Webhook-Timestamp": "now"}, "not all there and lawful"),
        ({}, {"Webhook-Id": "\ud800"}, "not all there and lawful"),
        ({"age": 600}, {}, "signed 600 s ago|signed 601 s ago"),
        ({"age": -600}, {}, "signed -600 s ago|signed -599 s ago"),
    ],
)
def test_what_is_not_the_services_or_too_old_is_refused(
    made: dict[str, Any], changes: dict[str, str], said: str
) -> None:
    with pytest.raises(BadSignature, match=said):
        verify_webhook(SECRET, _headers(**made) | changes, BODY, tolerance=300 if "age" in made else 86_400)


def test_what_has_no_headers_or_no_event_is_refused() -> None:
    with pytest.raises(BadSignature, match="not all there"):
        verify_webhook(SECRET, {}, BODY)
    with pytest.raises(BadSignature, match="no event"):
        verify_webhook(SECRET, _headers(b"[]"), b"[]")


def test_what_is_no_secret_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="base64"):
        verify_webhook("a secret", _headers(), BODY)
