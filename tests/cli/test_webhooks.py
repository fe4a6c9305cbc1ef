from __future__ import annotations

from app.local import Stack
from secateur_client import Client, verify_webhook
from tests.cli.conftest import Secateur
from tests.endpoint import endpoint
from tests.waiting import wait_until


def test_a_webhook_is_created_tested_shown_and_deleted(idle: Secateur, idle_client: Client) -> None:
    with endpoint() as receiver, idle_client as client:
        receiver.status = 500
        created = idle("webhooks", "create", receiver.url, "--description", "ours")
        webhook = client.webhooks()[0]
        assert (created.code, webhook.id in created.err, webhook.url in created.err) == (0, True, True)
        assert webhook.events == ["job.succeeded", "job.failed", "job.cancelled"]

        sent = idle("webhooks", "test", webhook.id)
        [request] = receiver.wait_for(1)
        assert verify_webhook(created.out.strip(), request.headers, request.body).type == "webhook.test"
        assert sent.out.strip() == request.headers["webhook-id"]
        wait_until(lambda: next(client.deliveries(webhook)).status == "failed", timeout=20, what="the test has failed")

    shown = idle("webhooks", "show", webhook.id).out
    assert ("ours" in shown, "webhook.test" in shown, "the endpoint answered 500" in shown) == (True, True, True)
    document = idle("webhooks", "show", webhook.id, "--json").document()
    assert (document["id"], [each["status"] for each in document["deliveries"]]) == (webhook.id, ["failed"])
    assert webhook.id in idle("webhooks", "list").out
    assert "whsec_" not in idle("webhooks", "list", "--json").out
    assert "is deleted" in idle("webhooks", "delete", webhook.id).err
    again = idle("webhooks", "delete", webhook.id)
    assert (again.code, webhook.id in again.err) == (3, True)


def test_a_webhook_for_other_events_is_created_as_json(idle: Secateur) -> None:
    made = idle("webhooks", "create", "https://hook.example/", "--event", "job.started", "--json").document()
    assert made["events"] == ["job.started"]
    assert made["secret"].startswith("whsec_")
    idle("webhooks", "delete", made["id"])


def test_a_misspelt_event_is_refused_with_what_was_meant(idle: Secateur) -> None:
    done = idle("webhooks", "create", "https://hook.example/", "--event", "job.finished")
    assert (done.code, done.out) == (3, "")
    assert "/events/0: " in done.err
    assert "job.succeeded" in done.err


def test_a_narrow_terminal_tears_no_id(idle: Secateur, idle_client: Client) -> None:
    with idle_client as client:
        webhook = client.create_webhook(f"https://hook.example/{'a-long-path/' * 8}", ["job.succeeded", "job.failed"])
        client.test_webhook(webhook)
        narrow = idle.told(COLUMNS="80")
        for command in (["list"], ["show", webhook.id]):
            lines = narrow("webhooks", *command).out.splitlines()
            assert max(map(len, lines)) <= 80
            assert any(webhook.id in line for line in lines)
        client.delete_webhook(webhook)


def test_the_limits_of_the_tenant_are_shown(idle: Secateur, idle_service: Stack) -> None:
    shown = idle("quotas").out
    assert "of 60,000" in shown
    assert "no limit" in shown
    assert idle("quotas", "--json").document()["tenant"] == "default"
