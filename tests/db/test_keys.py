from __future__ import annotations

import hmac
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from app.core.errors import Unauthenticated
from app.services.keys import Scope, authenticate, create_key, ensure_first_key, list_keys, revoke_key, rotate_key


def test_a_key_opens_what_it_was_made_for_and_its_secret_is_nowhere_kept(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        row, token = create_key(session, tenant="team-a", name="ci", scopes=[Scope.JOBS_READ])
        principal = authenticate(session, token)
        stored = str(session.execute(text("SELECT to_jsonb(api_keys) FROM api_keys")).scalar_one())

    assert (principal.tenant, principal.key_id) == ("team-a", row.id)
    assert principal.may(Scope.JOBS_READ)
    assert not principal.may(Scope.JOBS_WRITE)
    assert token.split("_", 2)[2] not in stored


def test_an_admin_may_everything(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        _, token = create_key(session, name="root", scopes=[Scope.ADMIN])
        assert all(authenticate(session, token).may(scope) for scope in Scope)


def test_every_wrong_key_is_refused_alike(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        live, token = create_key(session, name="live")
        gone, revoked = create_key(session, name="gone")
        assert revoke_key(session, gone.id)
        assert not revoke_key(session, gone.id)
        _, expired = create_key(session, name="old", expires_at=datetime.now(UTC) - timedelta(seconds=1))
        wrong = [
            revoked,
            expired,
            "",
            "sk_",
            token[:-1] + ("A" if token[-1] != "A" else "B"),
            token + "A",
            token.replace(live.id, "0" * 12),
            token.replace(live.id, gone.id),
        ]
        for each in wrong:
            with pytest.raises(Unauthenticated):
                authenticate(session, each)
        assert authenticate(session, token)


def test_a_key_is_compared_once_as_a_whole_digest_whatever_is_wrong_with_it(
    sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[str, str]] = []

    def noted(left: str, right: str) -> bool:
        compared.append((left, right))
        return compare_digest(left, right)

    compare_digest = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", noted)
    with sessions.begin() as session:
        live, token = create_key(session, name="live")
        gone, revoked = create_key(session, name="gone")
        revoke_key(session, gone.id)
        for wrong in (revoked, f"sk_{live.id}_{43 * 'A'}", token[:-4] + 4 * "_", f"sk_{12 * '0'}_{43 * 'A'}"):
            compared.clear()
            with pytest.raises(Unauthenticated):
                authenticate(session, wrong)
            assert [(len(left), len(right)) for left, right in compared] == [(64, 64)]
            assert wrong.split("_", 2)[2] not in compared[0]


def test_a_rotated_key_and_the_new_one_are_good_together_until_the_overlap_is_over(
    sessions: sessionmaker[Session],
) -> None:
    with sessions.begin() as session:
        old, before = create_key(session, tenant="team-a", name="ci", scopes=[Scope.JOBS_READ])
        new, after = rotate_key(session, old.id, overlap=timedelta(hours=1))
        assert authenticate(session, before).tenant == "team-a"
        principal = authenticate(session, after)
        assert (principal.tenant, principal.scopes, new.name, new.expires_at) == (
            "team-a",
            frozenset(["jobs:read"]),
            "ci",
            None,
        )
        with pytest.raises(ValueError, match="was rotated before"):
            rotate_key(session, old.id, overlap=timedelta(hours=1))

        session.execute(text("UPDATE api_keys SET expires_at = expires_at - interval '1 hour'"))
        with pytest.raises(Unauthenticated):
            authenticate(session, before)
        with pytest.raises(ValueError, match="still good"):
            rotate_key(session, old.id, overlap=timedelta(hours=1))
        assert authenticate(session, after)


def test_rotating_keeps_the_term_and_never_lengthens_the_old_keys_life(sessions: sessionmaker[Session]) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=5)
    with sessions.begin() as session:
        old, _ = create_key(session, name="ci", expires_at=soon)
        new, _ = rotate_key(session, old.id, overlap=timedelta(days=1))
        session.refresh(old)

    assert old.expires_at == soon
    assert new.expires_at is not None
    assert abs(new.expires_at - soon) < timedelta(seconds=30)
    assert (old.replaced_by, new.replaced_by) == (new.id, None)


def test_of_requests_at_once_none_waits_for_another_to_have_noted_the_use(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        key, token = create_key(session, name="busy")
    with sessions() as first, sessions() as second:
        second.execute(text("SET lock_timeout = '1ms'"))
        assert authenticate(first, token).key_id == authenticate(second, token).key_id == key.id
        first.commit()
    with sessions() as session:
        assert list_keys(session)[0].last_used_at is not None


@pytest.mark.parametrize("tenant", ["", "A", "a_b", "-a", "a-", "a" * 65, "a/b"])
def test_a_tenant_is_a_plain_name(sessions: sessionmaker[Session], tenant: str) -> None:
    with sessions.begin() as session, pytest.raises(ValueError, match="tenant"):
        create_key(session, tenant=tenant, name="x")


@pytest.mark.parametrize("scopes", [[], ["jobs:read", "jobs:delete"]])
def test_scopes_are_known_words(sessions: sessionmaker[Session], scopes: list[str]) -> None:
    with sessions.begin() as session, pytest.raises(ValueError, match="scopes must be some of jobs:read"):
        create_key(session, name="x", scopes=scopes)


def test_the_use_of_a_key_is_noted_at_most_once_a_minute(sessions: sessionmaker[Session]) -> None:
    def used() -> datetime | None:
        with sessions() as session:
            return list_keys(session)[0].last_used_at

    def use() -> datetime | None:
        with sessions.begin() as session:
            authenticate(session, token)
        return used()

    with sessions.begin() as session:
        _, token = create_key(session, name="x")
    assert used() is None
    first = use()
    assert first is not None
    assert use() == first
    with sessions.begin() as session:
        session.execute(text("UPDATE api_keys SET last_used_at = last_used_at - interval '2 minutes'"))
    later = use()
    assert later is not None
    assert later > first


def test_the_first_key_is_kept_while_it_works_and_replaced_when_it_does_not(
    sessions: sessionmaker[Session], database_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "api-key"
    ensure_first_key(database_url, path)
    first = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ensure_first_key(database_url, path)
    assert path.read_text() == first

    with sessions.begin() as session:
        revoke_key(session, authenticate(session, first.strip()).key_id or "")
    ensure_first_key(database_url, path)

    with sessions.begin() as session:
        assert authenticate(session, path.read_text().strip()).key_id
    assert path.read_text() != first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
