"""What is counted of a tenant, and the limits of its own."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import TextClause, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from app.contract.failure import Failure, FailureCode
from app.contract.spec import parse_stored
from app.core.errors import StorageFull
from app.core.ids import new_job_id
from app.core.limits import UNLIMITED, Limits
from app.db import attempts, jobs, sweep, tenants
from app.services import quotas
from tests.db.conftest import Jobs
from tests.specs import Document
from tests.waiting import wait_until

DEFAULTS = Limits(1, 2, 3, 4)
FOR_GOOD = Failure.of(FailureCode.INVALID_CHECKPOINT, "It is none.", attempt=1)
FOR_NOW = Failure.of(FailureCode.DISK_FULL, "Full.", attempt=1)


def test_a_tenant_has_the_defaults_where_it_has_no_limits_of_its_own(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        assert tenants.account(session, "a", DEFAULTS).limits == DEFAULTS
        tenants.set_limits(session, "a", {"max_queued": 7, "max_running": 0})
        tenants.set_limits(session, "a", {"max_queued": None, "max_stored_bytes": UNLIMITED})
        assert tenants.account(session, "a", DEFAULTS).limits == Limits(1, 0, UNLIMITED, 4)
        assert tenants.account(session, "b", DEFAULTS).limits == DEFAULTS
    with pytest.raises(IntegrityError, match="max_queued_counts"), sessions.begin() as session:
        tenants.set_limits(session, "a", {"max_queued": -1})


UPLOADED: dict[str, Document] = {"import": {"format": "torch"}, "dataset": {"files": [{"name": "file", "size": 1}]}}


def _upload(made: Jobs, tenant: str, kind: str, size: int) -> str:
    with made.sessions.begin() as session:
        return _insert_upload(session, tenant, kind, size)


def _insert_upload(session: Session, tenant: str, kind: str, size: int) -> str:
    job_id = new_job_id()
    spec = parse_stored({"kind": kind, "size": size, "sha256": "0" * 64, **UPLOADED[kind]})
    document = spec.model_dump(mode="json")
    jobs.insert_job(session, job_id=job_id, tenant=tenant, spec=document, spec_version=1, retention_days=1)
    return job_id


@pytest.mark.parametrize("seed", range(2))
def test_the_bytes_that_are_counted_are_those_that_are_kept(made: Jobs, seed: int) -> None:
    chance = random.Random(seed)
    ids: list[str] = []
    for step in range(60):
        tenant = chance.choice("ab")
        with made.sessions.begin() as session:
            match chance.randrange(7):
                case 0:
                    ids.append(_upload(made, tenant, chance.choice([*UPLOADED]), chance.randrange(1, 1_000)))
                case 1:
                    ids.append(made.queued(tenant=tenant))
                case 2 if ids:
                    attempts.claim(session, chance.choice(ids), owner="w", lease_seconds=60)
                case 3 if ids:
                    files = [_file(f"{n}.json", chance.randrange(1_000)) for n in range(chance.randrange(1, 4))]
                    attempts.succeed(session, chance.choice(ids), 1, result={}, files=files)
                case 4 if ids:
                    attempts.fail(session, chance.choice(ids), 1, failure=chance.choice([FOR_GOOD, FOR_NOW]))
                case 5 if ids:
                    jobs.request_cancel(session, chance.choice(ids), tenant)
                case 6 if ids:
                    chosen = chance.choice(ids)
                    if jobs.purge(session, chosen) and chance.random() < 0.5:
                        sweep.buried(session, [chosen])
        if step % 6 == 5:
            assert _counted(made) == _kept(made)
    assert sum(_kept(made).values()) > 0


@pytest.mark.parametrize("max_queued", [UNLIMITED, 5])
def test_an_upload_is_let_in_by_what_is_stored_when_its_turn_has_come(made: Jobs, max_queued: int) -> None:
    limits = DEFAULTS._replace(max_queued=max_queued, max_stored_bytes=1_500)

    def admit() -> None:
        with made.sessions.begin() as session:
            quotas.admit(session, "a", limits, more_bytes=1_000)

    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'")
    with ThreadPoolExecutor(1) as pool, made.sessions() as watcher:
        with made.sessions.begin() as session:
            quotas.admit(session, "a", limits, more_bytes=1_000)
            _insert_upload(session, "a", "import", 1_000)
            second = pool.submit(admit)
            wait_until(lambda: second.done() or _fresh(watcher, waiting), timeout=20, what="the second waits")
        with pytest.raises(StorageFull):
            second.result(timeout=20)


def _fresh(session: Session, question: TextClause) -> int:
    session.rollback()
    return session.scalar(question) or 0


def _file(name: str, size: int) -> attempts.NewArtifact:
    return attempts.NewArtifact(name, "report", "application/json", size, "0" * 64)


def _counted(made: Jobs) -> dict[str, int]:
    with made.sessions() as session:
        return {tenant: tenants.account(session, tenant, DEFAULTS).stored_bytes for tenant in "ab"}


def _kept(made: Jobs) -> dict[str, int]:
    """By the files that are listed, and the sweeper's own rule on uploads."""
    kept = dict.fromkeys("ab", 0)
    with made.sessions() as session:
        rows = session.execute(text("SELECT id, tenant, spec FROM jobs WHERE purged_at IS NULL")).all()
        needed = sweep.uploads_needed(session, [row.id for row in rows])
        for job_id, tenant, spec in rows:
            kept[tenant] += sum(file.size for file in jobs.artifacts(session, job_id))
            kept[tenant] += spec["size"] if spec["kind"] in UPLOADED and needed[job_id] else 0
    return kept


def test_a_list_has_every_tenant_that_there_is(made: Jobs) -> None:
    made.running(made.queued(tenant="busy"))
    with made.sessions.begin() as session:
        tenants.set_limits(session, "limited", {"max_running": 1})
        found = {tenant.name: tenant for tenant in tenants.all_tenants(session)}
    assert found.keys() == {"busy", "limited"}
    assert found["busy"].use == (0, 1, 0)
    assert set(found["busy"].own.values()) == {None}
    assert found["limited"].own["max_running"] == 1
