from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks import Webhook

from app.contract.webhooks import OF_STATUS, JobEventType, NewWebhook
from app.core.errors import InvalidWebhook
from app.core.peers import may_connect
from app.core.signing import new_secret, signature
from app.services.webhooks import parse, parse_patch, refuse_hopeless


def test_a_signature_is_what_the_public_package_makes_of_the_same() -> None:
    secret, at, payload = new_secret(), datetime(2026, 1, 31, 12, tzinfo=UTC), '{"type":"job.succeeded","data":{"é":1}}'

    theirs = Webhook(secret).sign("msg_1", at, payload)

    assert signature(secret, "msg_1", int(at.timestamp()), payload.encode()) == theirs
    assert signature(secret, "msg_1", int((at + timedelta(seconds=1)).timestamp()), payload.encode()) != theirs


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.31.0.1", "192.168.0.1", "100.100.100.200"),
        *("169.254.169.254", "192.0.0.192", "198.19.0.1", "203.0.113.7", "224.0.0.1", "255.255.255.255"),
        *("168.63.129.16", "::", "::1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b:1::808:808", "2002:7f00:1::"),
        *("2001:0:7f00:1::", "::127.0.0.1", "", "localhost", "2130706433", "0x7f000001"),
    ],
)
def test_what_is_not_public_is_not_connected_to(address: str) -> None:
    assert not may_connect(address, allow_private=False)


def test_what_is_public_is_connected_to() -> None:
    for address in ("8.8.8.8", "172.32.0.1", "192.0.1.1", "2606:4700::1111", "64:ff9b::808:808"):
        assert may_connect(address, allow_private=False), address


def test_where_private_addresses_are_allowed_a_machines_credentials_are_not_within_reach() -> None:
    for address in ("127.0.0.1", "::1", "10.1.2.3", "fd00::1", "100.64.0.1", "8.8.8.8"):
        assert may_connect(address, allow_private=True), address
    for address in ("169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1", "::ffff:169.254.169.254", "168.63.129.16"):
        assert not may_connect(address, allow_private=True), address
    for address in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200"):  # private by their numbers
        assert not may_connect(address, allow_private=True), address


def _parsed(url: str) -> NewWebhook:
    return parse(f'{{"url": "{url}", "events": ["job.failed"]}}'.encode())


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("https://Example.com", "https://example.com/"),
        ("https://2130706433/x", "https://127.0.0.1/x"),
        ("https://0x7f.1:8443/", "https://127.0.0.1:8443/"),
        ("https://0177.0.0.1/", "https://127.0.0.1/"),
        ("https://ü.example/ä", "https://xn--tda.example/%C3%A4"),
    ],
)
def test_a_url_is_kept_as_browsers_spell_it(given: str, url: str) -> None:
    assert _parsed(given).url == url


@pytest.mark.parametrize(
    ("document", "pointer", "code"),
    [
        ('{"url": "https://a.example", "events": []}', "/events", "too_short"),
        ('{"url": "https://a.example", "events": ["job.suceeded"]}', "/events/0", "unknown_value"),
        ('{"url": "https://a.example", "events": ["job.failed", "job.failed"]}', "/events", "value_error"),
        ('{"url": "https://a.example"}', "/events", "missing"),
        ('{"url": "ftp://a.example", "events": ["job.failed"]}', "/url", "string_pattern_mismatch"),
        ('{"url": "https://", "events": ["job.failed"]}', "/url", "url_invalid"),
        ('{"url": "https://u:p@a.example", "events": ["job.failed"]}', "/url", "url_has_credentials"),
        ('{"url": "https://a.example", "events": ["job.failed"], "secret": "x"}', "/secret", "unknown_field"),
    ],
)
def test_what_is_wrong_with_a_webhook_is_told_by_its_place(document: str, pointer: str, code: str) -> None:
    with pytest.raises(InvalidWebhook) as refused:
        parse(document.encode())
    assert [(error.pointer, error.code) for error in refused.value.errors] == [(pointer, code)]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://hook.example/", "url_not_https"),
        ("https://127.0.0.1/", "url_not_public"),
        ("https://0x7f000001/", "url_not_public"),
        ("https://[::1]:8443/", "url_not_public"),
        ("https://[::ffff:10.0.0.1]/", "url_not_public"),
        ("https://169.254.169.254/latest/meta-data", "url_not_public"),
        ("https://localhost./", "url_not_public"),
    ],
)
def test_what_could_never_be_reached_is_refused_at_once(url: str, code: str) -> None:
    with pytest.raises(InvalidWebhook) as refused:
        refuse_hopeless(_parsed(url).url, allow_private=False)
    assert [(error.pointer, error.code) for error in refused.value.errors] == [("/url", code)]


def test_where_private_addresses_are_allowed_they_are_accepted() -> None:
    for url in ("http://127.0.0.1:8000/", "http://localhost/", "https://10.0.0.1/", "https://hook.internal/"):
        refuse_hopeless(url, allow_private=True)
    with pytest.raises(InvalidWebhook):
        refuse_hopeless("http://169.254.169.254/", allow_private=True)


def test_a_patch_may_leave_everything_out_and_remove_the_description_alone() -> None:
    assert parse_patch(b"{}").model_fields_set == set()
    assert parse_patch(b'{"description": null}').model_dump(exclude_unset=True) == {"description": None}
    for field in ("url", "events", "enabled"):
        with pytest.raises(InvalidWebhook) as refused:
            parse_patch(f'{{"{field}": null}}'.encode())
        assert [error.pointer for error in refused.value.errors] == [f"/{field}"]


def test_each_end_of_a_job_is_an_event() -> None:
    assert set(OF_STATUS.values()) == set(JobEventType)
    assert {OF_STATUS[status] for status in OF_STATUS if status != "running"} == {
        "job.succeeded",
        "job.failed",
        "job.cancelled",
    }
