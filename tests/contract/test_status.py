from __future__ import annotations

from app.contract.status import TRANSITIONS, Status


def test_every_state_has_a_way_out_or_is_an_end() -> None:
    assert set(TRANSITIONS) == set(Status)
    ends = {status for status in Status if status.is_terminal}
    assert ends == {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}
    assert all(_reachable(status) & ends for status in set(Status) - ends)


def test_every_state_is_reached_from_the_first() -> None:
    assert _reachable(Status.QUEUED) | {Status.QUEUED} == set(Status)


def test_a_cancel_that_was_accepted_is_kept() -> None:
    assert [status for status in Status if Status.CANCELLING.may_become(status)] == [Status.CANCELLED]


def test_an_attempt_belongs_to_running_and_cancelling_jobs_alone() -> None:
    assert {status for status in Status if status.is_leased} == {Status.RUNNING, Status.CANCELLING}


def _reachable(start: Status) -> set[Status]:
    found: set[Status] = set()
    todo = [start]
    while todo:
        for following in TRANSITIONS[todo.pop()] - found:
            found.add(following)
            todo.append(following)
    return found
