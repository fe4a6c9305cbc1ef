"""From the row that an event writes to the request that arrives, over PostgreSQL and HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from threading import Event

import pytest
from sqlalchemy.orm import Session, sessionmaker
from standardwebhooks import Webhook, WebhookVerificationError

from app.db import jobs
from app.db import webhooks as queries
from app.db.webhooks import Claim
from app.delivery.guard import Resolver
from app.delivery.loop import JITTER, MOST, MOST_A_WEBHOOK, RETRY_SECONDS, Deliverer, settle
from app.delivery.outcome import Outcome
from app.delivery.sender import Sender
from app.services import webhooks
from tests.db.conftest import Jobs
from tests.delivery.conftest import Hooks
from tests.endpoint import Endpoint, Received, endpoint
from tests.waiting import wait_until

REFUSED = Outcome(500, "the endpoint answered 500")


@contextmanager
def delivering(sessions: sessionmaker[Session], *, loops: int = 1) -> Iterator[None]:
    """So many loops, as API processes run them."""
    over = Event()

    async def run() -> None:
        sender = Sender(Resolver(threads=8), allow_private=True)
        running = [Deliverer(sessions, lambda: sender) for _ in range(loops)]
        for deliverer in running:
            deliverer.start()
        await asyncio.to_thread(over.wait)
        await asyncio.gather(*(deliverer.stop() for deliverer in running))

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(asyncio.run, run())
        try:
            yield
        finally:
            over.set()
            done.result(timeout=30)


def _wait_for_failures(hooks: Hooks, webhook_id: str, count: int) -> None:
    wait_until(
        lambda: [row.failures for row in hooks.deliveries(webhook_id)] == [count], timeout=20, what="it has failed"
    )


def _claimed(hooks: Hooks) -> list[Claim]:
    with hooks.sessions.begin() as session:
        return queries.claim(session, room=100)


def _settled(hooks: Hooks, claim: Claim, outcome: Outcome) -> None:
    with hooks.sessions.begin() as session:
        settle(session, claim, outcome)


def _cancelled(made: Jobs) -> str:
    job_id = made.queued()
    with made.sessions.begin() as session:
        jobs.request_cancel(session, job_id, "default")
    return job_id


def _is_signed(request: Received, secret: str) -> bool:
    try:
        Webhook(secret).verify(request.body, dict(request.headers))
    except WebhookVerificationError:
        return False
    return True


def test_an_event_arrives_signed_and_thin(hooks: Hooks, made: Jobs, receiver: Endpoint) -> None:
    webhook_id = hooks.make(receiver.url)
    with delivering(hooks.sessions):
        job_id = _cancelled(made)
        [request] = receiver.wait_for(1)

    event = Webhook(hooks.row(webhook_id).secret).verify(request.body, dict(request.headers))
    [delivery] = hooks.deliveries(webhook_id)
    assert event == {
        "type": "job.cancelled",
        "timestamp": event["timestamp"],
        "data": {"job_id": job_id, "kind": "train", "status": "cancelled", "href": f"/v1/jobs/{job_id}"},
    }
    assert event["timestamp"].endswith("Z")
    assert request.headers["webhook-id"] == delivery.id
    assert request.headers["Content-Type"] == "application/json"
    assert (delivery.status, delivery.attempts, delivery.response_status, delivery.error) == ("succeeded", 1, 204, None)
    assert delivery.job_id == job_id


def test_what_failed_is_sent_again_under_the_same_id_after_a_while(
    hooks: Hooks, made: Jobs, receiver: Endpoint
) -> None:
    webhook_id = hooks.make(receiver.url)
    _cancelled(made)
    receiver.status = 500
    with delivering(hooks.sessions):
        _wait_for_failures(hooks, webhook_id, 1)
        [first] = hooks.deliveries(webhook_id)
        receiver.status = 200
        hooks.let_be_due()
        requests = receiver.wait_for(2)

    [last] = hooks.deliveries(webhook_id)
    assert (first.status, first.response_status, first.error) == ("pending", 500, "the endpoint answered 500")
    assert first.next_attempt_at is not None
    assert first.last_attempt_at is not None
    assert timedelta(seconds=5) < first.next_attempt_at - first.last_attempt_at < timedelta(seconds=5 * 1.2 + 5)
    assert (last.status, last.attempts, last.error) == ("succeeded", 2, None)
    assert {request.headers["webhook-id"] for request in requests} == {last.id}
    assert {request.body for request in requests} == {last.payload.encode()}
    assert all(_is_signed(request, hooks.row(webhook_id).secret) for request in requests)


def test_a_rotated_secret_signs_beside_the_new_one_for_a_day(hooks: Hooks, receiver: Endpoint) -> None:
    webhook_id = hooks.make(receiver.url)
    old = hooks.row(webhook_id).secret
    with hooks.sessions.begin() as session:
        new = webhooks.rotate(session, "default", webhook_id).secret
    hooks.tested(webhook_id)
    with delivering(hooks.sessions):
        receiver.wait_for(1)
        hooks.execute("UPDATE webhooks SET previous_secret_expires_at = now()")
        hooks.tested(webhook_id)
        during, after = receiver.wait_for(2)

    assert [_is_signed(during, secret) for secret in (old, new)] == [True, True]
    assert [_is_signed(after, secret) for secret in (old, new)] == [False, True]


def test_whoever_dies_between_claiming_and_sending_loses_nothing(hooks: Hooks, receiver: Endpoint) -> None:
    webhook_id = hooks.make(receiver.url)
    [delivery_id] = hooks.tested(webhook_id)
    [dead] = _claimed(hooks)
    assert _claimed(hooks) == []  # it is leased

    hooks.let_be_due()
    with delivering(hooks.sessions):
        [request] = receiver.wait_for(1)
        wait_until(lambda: hooks.deliveries(webhook_id)[0].status == "succeeded", timeout=20, what="it got through")
    _settled(hooks, dead, REFUSED)  # it was frozen, not dead: what it found out is no news

    [row] = hooks.deliveries(webhook_id)
    assert request.headers["webhook-id"] == delivery_id == dead.delivery_id
    assert (row.status, row.attempts, row.failures) == ("succeeded", 2, 0)


def test_of_two_loops_each_delivery_is_sent_by_one(hooks: Hooks, receiver: Endpoint) -> None:
    others = [hooks.make(receiver.url) for _ in range(4)]
    ids = {delivery_id for webhook_id in others for delivery_id in hooks.tested(webhook_id, 10)}

    with delivering(hooks.sessions, loops=2):
        receiver.wait_for(40)

    assert len(receiver.received) == 40
    assert {request.headers["webhook-id"] for request in receiver.received} == ids


def test_an_endpoint_that_does_not_answer_holds_up_no_other(hooks: Hooks, receiver: Endpoint) -> None:
    with endpoint() as dead:
        dead.may_answer.clear()
        silent = hooks.make(dead.url)
        hooks.execute(
            "INSERT INTO webhook_deliveries (id, webhook_id, event, payload, next_attempt_at) "
            "SELECT 'msg_' || n, :id, 'webhook.test', '{}', now() - interval '1 hour' FROM generate_series(1, :n) AS n",
            id=silent,
            n=10 * MOST,
        )
        with delivering(hooks.sessions):
            dead.wait_for(MOST_A_WEBHOOK)
            hooks.tested(hooks.make(receiver.url), 10)
            receiver.wait_for(10)
            assert len(dead.received) == MOST_A_WEBHOOK
            dead.may_answer.set()
            dead.wait_for(5 * MOST_A_WEBHOOK)


def test_what_cannot_be_sent_at_all_has_failed_like_any_other(hooks: Hooks, made: Jobs) -> None:
    webhook_id = hooks.make("https://hook.example/")
    hooks.execute("UPDATE webhooks SET url = 'gopher://hook.example/'")
    _cancelled(made)
    with delivering(hooks.sessions):
        _wait_for_failures(hooks, webhook_id, 1)

    assert hooks.deliveries(webhook_id)[0].error == "it could not be sent"


def test_what_is_under_way_when_the_process_ends_is_settled(hooks: Hooks, receiver: Endpoint) -> None:
    webhook_id = hooks.make(receiver.url)
    hooks.tested(webhook_id)
    receiver.may_answer.clear()
    with delivering(hooks.sessions):
        receiver.wait_for(1)
        receiver.may_answer.set()

    assert [row.status for row in hooks.deliveries(webhook_id)] == ["succeeded"]


@pytest.mark.parametrize("failures", range(len(RETRY_SECONDS) + 1))
def test_each_failure_is_followed_by_a_longer_wait_and_the_last_by_none(
    hooks: Hooks, made: Jobs, failures: int
) -> None:
    webhook_id = hooks.make("https://hook.example/")
    _cancelled(made)
    hooks.execute("UPDATE webhook_deliveries SET failures = :failures", failures=failures)
    [claim] = _claimed(hooks)
    _settled(hooks, claim, REFUSED)

    [row] = hooks.deliveries(webhook_id)
    assert row.failures == failures + 1
    if failures == len(RETRY_SECONDS):
        assert (row.status, row.next_attempt_at) == ("failed", None)
    else:
        assert row.next_attempt_at is not None
        assert row.last_attempt_at is not None
        waits = (row.next_attempt_at - row.last_attempt_at).total_seconds()
        assert RETRY_SECONDS[failures] <= waits <= RETRY_SECONDS[failures] * (1 + JITTER) + 5


def test_an_endpoint_may_ask_for_more_time_but_not_for_ever(hooks: Hooks, made: Jobs) -> None:
    webhook_id = hooks.make("https://hook.example/")
    for asked_for, at_least in ((60, 60), (10**7, 86_400)):
        _cancelled(made)
        [claim] = _claimed(hooks)
        _settled(hooks, claim, Outcome(503, "the endpoint answered 503", asked_for))
        row = hooks.deliveries(webhook_id)[-1]
        assert row.next_attempt_at is not None
        assert row.last_attempt_at is not None
        waits = (row.next_attempt_at - row.last_attempt_at).total_seconds()
        assert at_least <= waits <= at_least * (1 + JITTER) + 5


def test_an_endpoint_that_is_gone_is_left_alone_until_its_client_enables_it(hooks: Hooks) -> None:
    webhook_id = hooks.make("https://hook.example/")
    hooks.tested(webhook_id, 2)
    [claim] = _claimed(hooks)
    _settled(hooks, claim, Outcome(410, "the endpoint answered 410"))

    row = hooks.row(webhook_id)
    assert (row.disabled_reason, row.disabled_at is None) == ("gone", False)
    assert sorted(row.status for row in hooks.deliveries(webhook_id)) == ["failed", "pending"]
    assert _claimed(hooks) == []

    with hooks.sessions.begin() as session:
        webhooks.change(session, "default", webhook_id, webhooks.parse_patch(b'{"enabled": true}'), allow_private=True)
    assert len(_claimed(hooks)) == 1


def test_a_webhook_is_disabled_when_nothing_got_through_for_five_days(hooks: Hooks, made: Jobs) -> None:
    webhook_id = hooks.make("https://hook.example/")

    def fail(days: int, failures: int) -> str | None:
        _cancelled(made)
        hooks.execute("UPDATE webhook_deliveries SET failures = :failures", failures=failures)
        hooks.execute("UPDATE webhooks SET failing_since = failing_since - :days * interval '1 day'", days=days)
        [claim] = _claimed(hooks)
        _settled(hooks, claim, REFUSED)
        return hooks.row(webhook_id).disabled_reason

    given_up = len(RETRY_SECONDS)
    assert fail(0, given_up) is None
    assert fail(4, given_up) is None
    assert fail(2, 0) is None  # a single failure after a long silence says little
    hooks.execute("UPDATE webhook_deliveries SET status = 'failed', next_attempt_at = NULL")
    assert fail(0, given_up) == "failing"


def test_one_that_gets_through_ends_the_failing(hooks: Hooks, made: Jobs) -> None:
    webhook_id = hooks.make("https://hook.example/")
    _cancelled(made)
    [claim] = _claimed(hooks)
    _settled(hooks, claim, REFUSED)
    assert hooks.row(webhook_id).failing_since is not None
    hooks.tested(webhook_id)
    [claim] = _claimed(hooks)
    _settled(hooks, claim, Outcome(200, None))
    assert hooks.row(webhook_id).failing_since is None


def test_a_test_is_sent_once(hooks: Hooks) -> None:
    webhook_id = hooks.make("https://hook.example/")
    hooks.tested(webhook_id)
    [claim] = _claimed(hooks)
    _settled(hooks, claim, REFUSED)

    [row] = hooks.deliveries(webhook_id)
    assert (row.status, row.event) == ("failed", "webhook.test")
    assert hooks.row(webhook_id).failing_since is None


def test_what_is_asked_for_again_is_sent_now_and_as_often_as_a_new_one(hooks: Hooks, made: Jobs) -> None:
    webhook_id = hooks.make("https://hook.example/")
    _cancelled(made)
    hooks.execute("UPDATE webhook_deliveries SET failures = 7")
    [slow] = _claimed(hooks)
    with hooks.sessions.begin() as session:
        webhooks.redeliver(session, "default", webhook_id, slow.delivery_id)
    _settled(hooks, slow, REFUSED)  # what was under way meanwhile does not put it off

    [again] = _claimed(hooks)
    assert (again.delivery_id, again.failures) == (slow.delivery_id, 0)
