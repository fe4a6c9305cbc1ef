"""The states of a job and the moves between them. The database enforces the same table (tests hold them together)."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Where a job is in its life. `is_terminal` is what a client should loop on (the API's `done`)."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)

    @property
    def is_leased(self) -> bool:
        """Whether an attempt (a worker with a lease) belongs to a job in this state."""
        return self in (Status.RUNNING, Status.CANCELLING)

    def may_become(self, other: Status) -> bool:
        return other in TRANSITIONS[self]


TRANSITIONS: dict[Status, frozenset[Status]] = {
    # A sweep waits for its members; when the last one has ended, it needs a worker as any job does.
    Status.WAITING: frozenset({Status.QUEUED, Status.CANCELLED}),
    Status.QUEUED: frozenset({Status.RUNNING, Status.CANCELLED, Status.FAILED}),
    # Back to queued: the lease ran out, or the worker handed the job back while shutting down.
    Status.RUNNING: frozenset({Status.QUEUED, Status.CANCELLING, Status.SUCCEEDED, Status.FAILED}),
    # A cancel that was accepted is kept: an attempt that finishes or crashes meanwhile ends as cancelled.
    Status.CANCELLING: frozenset({Status.CANCELLED}),
    Status.SUCCEEDED: frozenset(),
    # Only when a client asks for a retry, of a sweep also of its members.
    Status.FAILED: frozenset({Status.QUEUED, Status.WAITING}),
    Status.CANCELLED: frozenset(),
}


class Phase(StrEnum):
    """What a running job is doing, for people. An open word: clients must accept values they do not know."""

    WAITING = "waiting"
    PREPARING_DATA = "preparing_data"
    IMPORTING = "importing"
    TRAINING = "training"
    FINE_TUNING = "fine_tuning"
    EVALUATING = "evaluating"
    PRUNING = "pruning"
    REPORTING = "reporting"
    PUBLISHING = "publishing"
