"""One attempt, over a real connection; what is made up is the answer of the name server alone."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import httpcore
import pytest
import trustme

from app.core.signing import new_secret
from app.db.webhooks import Claim
from app.delivery.guard import GuardedBackend, PeerRefused, Resolve, Resolver
from app.delivery.outcome import Outcome
from app.delivery.sender import Sender
from tests.endpoint import Endpoint, endpoint

REFUSED = Outcome(None, "the host has no address that may be connected to")


def answers(*in_turn: Sequence[str]) -> Resolve:
    """A name server that gives these answers, one after the other."""
    left = list(in_turn)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return left.pop(0)

    return resolve


def claim(url: str) -> Claim:
    return Claim(
        delivery_id="msg_1",
        webhook_id="wh_1",
        event="job.succeeded",
        failures=0,
        leased_until=datetime.now(UTC),
        url=url,
        payload=b"{}",
        secrets=[new_secret()],
    )


def sent(url: str, *, allow_private: bool = True, resolve: Resolve | None = None, **options: object) -> Outcome:
    async def send() -> Outcome:
        sender = Sender(resolve or Resolver(threads=1), allow_private=allow_private, **options)  # type: ignore[arg-type]
        return await sender.send(claim(url))

    return asyncio.run(send())


@pytest.mark.parametrize(
    ("status", "headers", "outcome"),
    [
        (200, {}, Outcome(200, None)),
        (204, {}, Outcome(204, None)),
        (302, {"Location": "/elsewhere"}, Outcome(302, "the endpoint answered 302: redirects are not followed")),
        (404, {}, Outcome(404, "the endpoint answered 404")),
        (410, {}, Outcome(410, "the endpoint answered 410")),
        (500, {"Retry-After": "soon"}, Outcome(500, "the endpoint answered 500")),
        (503, {"Retry-After": "120"}, Outcome(503, "the endpoint answered 503", retry_after_seconds=120)),
    ],
)
def test_an_answer_counts_by_its_status(
    receiver: Endpoint, status: int, headers: dict[str, str], outcome: Outcome
) -> None:
    receiver.status, receiver.headers = status, headers

    assert sent(receiver.url) == outcome
    assert [(each.path, each.body) for each in receiver.received] == [("/hook?of=tests", b"{}")]


def test_an_endpoint_that_does_not_answer_is_given_up_in_time(receiver: Endpoint) -> None:
    receiver.may_answer.clear()

    assert sent(receiver.url, seconds=0.2) == Outcome(None, "no answer within 0.2 s")


def test_of_an_answer_without_end_the_beginning_will_do(receiver: Endpoint) -> None:
    receiver.status, receiver.never_ends = 200, True

    assert sent(receiver.url) == Outcome(200, None)


def test_an_answer_that_never_begins_is_not_heard_out(receiver: Endpoint) -> None:
    receiver.never_begins = True

    assert sent(receiver.url, seconds=2) == Outcome(None, "the connection broke, or the answer was not HTTP")


def test_an_answer_that_has_begun_counts_though_it_does_not_end(receiver: Endpoint) -> None:
    receiver.status = 200
    receiver.may_end.clear()

    assert sent(receiver.url) == Outcome(200, None)


def test_nobody_listens_there() -> None:
    with endpoint() as gone:
        pass

    assert sent(gone.url) == Outcome(None, "the connection failed")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "localhost", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]"]
)
def test_an_endpoint_of_this_machine_is_not_connected_to_however_it_is_spelt(receiver: Endpoint, host: str) -> None:
    """As it stands in the database, past all that was checked before."""
    assert sent(f"http://{host}:{receiver.port}/", allow_private=False) == REFUSED
    assert receiver.received == []


def test_a_name_is_judged_by_all_that_it_stands_for(receiver: Endpoint) -> None:
    for found in (["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["169.254.169.254"], []):
        resolve = answers(found)
        assert sent(f"http://hook.example:{receiver.port}/", allow_private=False, resolve=resolve) == REFUSED
    assert receiver.received == []


class Elsewhere(httpcore.AnyIOBackend):
    """A network that leads to this machine, wherever one wants to go; it notes where that was."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_for: list[str] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.asked_for.append(host)
        return await super().connect_tcp("127.0.0.1", port, timeout)


def _connected(backend: GuardedBackend, port: int) -> httpcore.AsyncNetworkStream:
    return asyncio.run(backend.connect_tcp("hook.example", port, 5))


def test_a_name_that_answers_otherwise_a_moment_later_is_looked_up_once(receiver: Endpoint) -> None:
    network, public = Elsewhere(), "93.184.216.34"
    rebinding = answers([public], ["127.0.0.1"])

    with pytest.raises(PeerRefused):
        _connected(GuardedBackend(rebinding, allow_private=False, network=network), receiver.port)

    assert network.asked_for == [public]  # by its number: there was no name left to look up
    with pytest.raises(PeerRefused):
        _connected(GuardedBackend(rebinding, allow_private=False, network=network), receiver.port)
    assert network.asked_for == [public]


def test_whoever_answers_in_the_end_is_looked_at_before_anything_is_sent(receiver: Endpoint) -> None:
    network = Elsewhere()

    with pytest.raises(PeerRefused, match=r"127\.0\.0\.1"):
        _connected(GuardedBackend(answers(["93.184.216.34"]), allow_private=False, network=network), receiver.port)

    assert receiver.received == []


def test_the_next_address_is_tried_when_one_does_not_answer(receiver: Endpoint) -> None:
    resolve = answers(["127.0.0.2", "127.0.0.1"])  # the server listens on the second alone

    assert sent(f"http://hook.example:{receiver.port}/", resolve=resolve) == Outcome(204, None)


def test_a_certificate_must_be_of_the_name_and_not_of_the_address() -> None:
    authority = trustme.CA()
    ours, theirs = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(ours)
    authority.issue_cert("hook.example").configure_cert(theirs)

    with endpoint(theirs) as secure:
        of_name, of_other, of_nobody = (
            sent(f"https://{name}:{secure.port}/", resolve=answers(["127.0.0.1"]), tls=tls)
            for name, tls in (("hook.example", ours), ("other.example", ours), ("hook.example", None))
        )

    assert of_name == Outcome(204, None)
    assert str(of_other.error).startswith("the certificate was not accepted: Hostname mismatch")
    assert of_nobody == Outcome(None, "the certificate was not accepted: unable to get local issuer certificate")
    assert len(secure.received) == 1


def test_a_secret_is_not_shown_by_what_bears_it() -> None:
    bearer = claim("https://hook.example/")

    assert bearer.secrets[0] not in repr(bearer)
