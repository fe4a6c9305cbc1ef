"""Whose turn it is: caps hold, tenants share, and the position that is told is the order that comes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from app.contract.status import Status
from app.core.limits import UNLIMITED
from app.db import attempts, jobs, tenants, turns
from tests.db.conftest import FAILURE, LEASE, Jobs


def _claim(sessions: sessionmaker[Session], max_running: int = UNLIMITED) -> attempts.Claim | None:
    with sessions.begin() as session:
        return turns.claim_next(session, owner="w", lease_seconds=LEASE, max_running=max_running)


def _claim_all(sessions: sessionmaker[Session], max_running: int = UNLIMITED) -> list[attempts.Claim]:
    return list(iter(lambda: _claim(sessions, max_running), None))


def _turn(made: Jobs, job_id: str, max_running: int = UNLIMITED) -> turns.Turn | None:
    with made.sessions() as session:
        return turns.turn(session, job_id, max_running=max_running)


def test_one_job_of_a_small_tenant_does_not_wait_for_fifty_of_another(made: Jobs) -> None:
    ids = [made.queued(tenant="large") for _ in range(50)]
    small = made.queued(tenant="small")

    found = _turn(made, small)

    assert found is not None
    assert found.position == 2
    first, second, third = (_claim(made.sessions) for _ in range(3))
    assert [claim and claim.job_id for claim in (first, second, third)] == [ids[0], small, ids[1]]


def test_claims_at_once_keep_the_cap_of_each_tenant_and_start_each_job_once(
    made: Jobs, both: Callable[..., list[Any]]
) -> None:
    ids = [made.queued(tenant=tenant) for tenant in ("a", "b", "c") for _ in range(8)]
    with made.sessions.begin() as session:
        tenants.set_limits(session, "a", {"max_running": 3})
        tenants.set_limits(session, "b", {"max_running": UNLIMITED})

    def claim_all(sessions: sessionmaker[Session]) -> list[attempts.Claim]:
        return _claim_all(sessions, max_running=2)

    claims = [claim for each in both(*[claim_all] * 6) for claim in each]

    assert Counter(claim.tenant for claim in claims) == {"a": 3, "b": 8, "c": 2}
    assert len({claim.job_id for claim in claims}) == len(claims) == 13
    assert sum(made.row(job_id).status == Status.QUEUED for job_id in ids) == 11


def test_a_job_over_the_cap_waits_for_an_end_and_then_has_its_turn(made: Jobs) -> None:
    made.queued(tenant="a")
    waits = made.queued(tenant="a")
    first = _claim(made.sessions, max_running=1)
    assert first is not None
    with made.sessions() as session:
        assert turns.next_job(session, max_running=1) is None
    assert _turn(made, waits, max_running=1) == turns.Turn(position=1, ahead=0, running=1, max_running=1)

    with made.sessions.begin() as session:
        attempts.fail(session, first.job_id, 1, failure=FAILURE)

    next_ = _claim(made.sessions, max_running=1)
    assert next_ is not None
    assert next_.job_id == waits


def test_a_job_whose_time_in_the_queue_is_over_is_passed_by(made: Jobs) -> None:
    late, next_ = made.queued(), made.queued()
    made.past(late, "queue_deadline")
    assert [claim.job_id for claim in _claim_all(made.sessions)] == [next_]


@pytest.mark.parametrize("seed", range(6))
def test_the_positions_that_are_told_are_the_order_that_comes(made: Jobs, seed: int) -> None:
    """Also where jobs run already, and where two came at the same instant."""
    chance = random.Random(seed)
    for _ in range(chance.randrange(4)):
        made.running(made.queued(tenant=chance.choice("abc")))
    ids = [made.queued(tenant=chance.choice("aaabbcd")) for _ in range(chance.randrange(1, 14))]
    with made.sessions.begin() as session:
        session.execute(text("UPDATE jobs SET queued_at = date_trunc('second', queued_at)"))

    told = {job_id: found.position for job_id in ids if (found := _turn(made, job_id))}

    order = [claim.job_id for claim in _claim_all(made.sessions)]
    assert sorted(told.values()) == list(range(1, len(ids) + 1))
    assert sorted(told, key=told.__getitem__) == order
    assert [_turn(made, job_id) for job_id in ids] == [None] * len(ids)


def test_what_is_cancelled_while_it_is_chosen_is_passed_by(made: Jobs, sessions: sessionmaker[Session]) -> None:
    gone, next_ = made.queued(), made.queued()
    with sessions.begin() as session:
        chosen = turns.next_job(session, max_running=UNLIMITED)
        with made.sessions.begin() as other:
            jobs.request_cancel(other, gone, "default")
        assert chosen == gone
        claim = turns.claim_next(session, owner="w", lease_seconds=LEASE, max_running=UNLIMITED)
    assert claim is not None
    assert claim.job_id == next_


def _claim_together(
    made: Jobs,
    *,
    most: int = 9,
    sharers: int = 0,
    max_running: int = UNLIMITED,
    joins: Callable[[turns.Waiting], bool] = lambda _: True,
) -> list[str]:
    with made.sessions.begin() as session:
        terms: dict[str, Any] = {"owner": "w", "lease_seconds": LEASE, "max_running": max_running}
        first = turns.claim_next(session, **terms)
        assert first is not None
        others = turns.claim_beside(session, first, joins, most=most, sharers=sharers, **terms)
    return [claim.job_id for claim in (first, *others)]


def test_members_of_one_sweep_are_claimed_at_once_in_their_order(made: Jobs) -> None:
    _, ids = made.sweep([0.1, 0.2, 0.3, 0.4])
    other, later = made.sweep(), made.queued()

    assert _claim_together(made, most=2) == ids[:3]

    rows = [made.row(job_id) for job_id in ids]
    assert [(row.status, row.attempt, row.lease_owner) for row in rows] == [("running", 1, "w")] * 3 + [
        ("queued", 0, None)
    ]
    assert made.events(ids[1]) == ["queued", "running"]
    assert {made.row(job_id).status for job_id in (*other.members, later)} == {"queued"}


@pytest.mark.parametrize(
    ("members", "most", "sharers", "shares"),
    [
        (8, 9, 1, [4, 2, 1, 1]),
        (7, 9, 1, [4, 2, 1]),
        (7, 9, 2, [3, 2, 1, 1]),
        (3, 9, 5, [1, 1, 1]),
        (9, 2, 1, [3, 3, 2, 1]),  # enough for all to be full
    ],
)
def test_who_has_nothing_to_do_is_left_as_many(
    made: Jobs, members: int, most: int, sharers: int, shares: list[int]
) -> None:
    """Of those that wait at that moment: here the same worker comes again and again, and the others never do."""
    _, ids = made.sweep([0.01 * number for number in range(members)])
    left = list(ids)
    for share in shares:
        assert _claim_together(made, most=most, sharers=sharers) == left[:share]
        del left[:share]
    assert left == []


def test_only_those_that_are_wanted_are_claimed_with_another(made: Jobs) -> None:
    _, ids = made.sweep([0.1, 0.2, 0.3])
    assert _claim_together(made, joins=lambda waiting: waiting.spec["pruning"]["threshold"] == 0.3) == [ids[0], ids[2]]


@pytest.mark.parametrize(("cap", "shares"), [(4, [2, 1, 1]), (3, [2, 1]), (1, [1])])
def test_what_a_tenant_may_still_run_is_shared_too(made: Jobs, cap: int, shares: list[int]) -> None:
    _, ids = made.sweep([0.01 * number for number in range(9)])
    left = list(ids)
    for share in shares:
        assert _claim_together(made, sharers=1, max_running=cap) == left[:share]
        del left[:share]
    assert _claim(made.sessions, max_running=cap) is None


def test_those_that_others_could_not_take_either_are_not_shared(made: Jobs) -> None:
    _, ids = made.sweep([0.1, 0.2, 0.3, 0.4, 0.5])
    wanted = [ids[0], ids[1], ids[4]]

    def joins(waiting: turns.Waiting) -> bool:
        return waiting.spec["pruning"]["threshold"] in (0.1, 0.2, 0.5)

    assert _claim_together(made, joins=joins, sharers=1) == wanted[:2]


def test_members_that_are_claimed_at_once_keep_their_tenants_cap(made: Jobs) -> None:
    running = made.running()
    _, ids = made.sweep([0.1, 0.2, 0.3])
    assert _claim_together(made, max_running=3) == ids[:2]
    assert _claim(made.sessions, max_running=3) is None
    made.end(running, Status.SUCCEEDED)
    assert _claim_together(made, max_running=3) == ids[2:]


def test_members_that_somebody_else_holds_are_passed_over(made: Jobs, sessions: sessionmaker[Session]) -> None:
    """So that a claim and a cancel of all, each of which locks many, never wait for each other."""
    _, ids = made.sweep([0.1, 0.2, 0.3])
    with sessions.begin() as session:
        jobs.request_cancel(session, ids[1], "default")
        assert _claim_together(made) == [ids[0], ids[2]]
    assert made.row(ids[1]).status == "cancelled"


def test_members_whose_time_in_the_queue_is_over_are_passed_over(made: Jobs) -> None:
    _, ids = made.sweep([0.1, 0.2, 0.3])
    made.past(ids[1], "queue_deadline")
    assert _claim_together(made) == [ids[0], ids[2]]
