"""The tables. What a row may never look like, the database itself refuses."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.contract.status import Status

REVISION = "0012"
"""The migration that makes these tables; their numbers have four digits each."""

_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


def _states(*states: Status) -> str:
    return "(" + ", ".join(f"'{state}'" for state in states) + ")"


ALL = _states(*Status)
LEASED = _states(*(state for state in Status if state.is_leased))
TERMINAL_STATES = [state.value for state in Status if state.is_terminal]
TERMINAL = _states(*(state for state in Status if state.is_terminal))


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=_NAMES)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own declaration
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(none_as_null=True),
        list[dict[str, Any]]: JSONB(none_as_null=True),
        list[str]: ARRAY(Text),
        str: Text,
    }


class JobRow(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"status IN {ALL}", name="status_known"),
        CheckConstraint(f"(status IN {LEASED}) = (lease_expires_at IS NOT NULL)", name="lease_while_attempted"),
        CheckConstraint(f"(status IN {LEASED}) = (lease_owner IS NOT NULL)", name="owner_while_attempted"),
        CheckConstraint(f"(status IN {TERMINAL}) = (finished_at IS NOT NULL)", name="finished_when_terminal"),
        CheckConstraint("(status = 'succeeded') = (result IS NOT NULL)", name="result_when_succeeded"),
        CheckConstraint("(status = 'failed') = (error IS NOT NULL)", name="error_when_failed"),
        CheckConstraint(f"status NOT IN {LEASED} OR attempt > 0", name="attempt_counted"),
        CheckConstraint("(status = 'cancelling') = (cancel_deadline IS NOT NULL)", name="limit_while_cancelling"),
        CheckConstraint("status NOT IN ('succeeded', 'cancelled') OR checkpoints = '[]'", name="checkpoints_of_use"),
        CheckConstraint(f"tidied_at IS NULL OR status IN {TERMINAL}", name="tidied_when_terminal"),
        # A data set stays until it is deleted.
        CheckConstraint(
            f"(status IN {TERMINAL} AND NOT (kind = 'dataset' AND status = 'succeeded')) = (expires_at IS NOT NULL)",
            name="expires_when_terminal",
        ),
        CheckConstraint(f"purged_at IS NULL OR status IN {TERMINAL}", name="purged_when_terminal"),
        CheckConstraint("status <> 'waiting' OR kind = 'sweep'", name="sweeps_wait"),
        CheckConstraint("sweep_id IS NULL OR kind <> 'sweep'", name="no_sweeps_of_sweeps"),
        Index("ix_jobs_listing", "tenant", text("created_at DESC"), text("id DESC")),
        Index("ix_jobs_labels", "labels", postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"}),
        Index("ix_jobs_parent", "parent_job_id", postgresql_where=text("parent_job_id IS NOT NULL")),
        Index("ix_jobs_sweep", "sweep_id", postgresql_where=text("sweep_id IS NOT NULL")),
        Index("ix_jobs_waiting", "queue_deadline", postgresql_where=text("status = 'waiting'")),
        Index("ix_jobs_sources", "sources", postgresql_using="gin"),
        Index("ix_jobs_expiring", "expires_at", postgresql_where=text("expires_at IS NOT NULL AND purged_at IS NULL")),
        Index("ix_jobs_datasets", "tenant", text("created_at DESC"), postgresql_where=text("kind = 'dataset'")),
        Index("ix_jobs_succeeded", text("finished_at DESC"), postgresql_where=text("status = 'succeeded'")),
        Index("ix_jobs_purged", "purged_at", postgresql_where=text("purged_at IS NOT NULL")),
        Index("ix_jobs_queued", "queued_at", postgresql_where=text("status = 'queued'")),
        Index("ix_jobs_turn", "tenant", "queued_at", "id", postgresql_where=text("status = 'queued'")),
        Index("ix_jobs_queue_deadline", "queue_deadline", postgresql_where=text("status = 'queued'")),
        Index("ix_jobs_publish_at", "publish_at", postgresql_where=text("status = 'queued'")),
        # Not of the lease's end, which every heartbeat moves: it would have to change all indexes.
        Index("ix_jobs_leased", "tenant", postgresql_where=text(f"status IN {LEASED}")),
        Index("ix_jobs_untidied", "queued_at", postgresql_where=text(f"status IN {TERMINAL} AND tidied_at IS NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    kind: Mapped[str]
    status: Mapped[str]
    phase: Mapped[str | None]
    display_name: Mapped[str | None]
    labels: Mapped[dict[str, Any]]
    spec: Mapped[dict[str, Any]]
    spec_version: Mapped[int]
    parent_job_id: Mapped[str | None] = mapped_column(comment="The job that this one is a rerun of.")
    sweep_id: Mapped[str | None] = mapped_column(comment="The sweep that this job is a member of.")
    sources: Mapped[list[str]] = mapped_column(
        server_default="{}", comment="The jobs whose files it reads; of a sweep its members, in their order."
    )
    revision: Mapped[int] = mapped_column(BigInteger, server_default="1")
    events: Mapped[int] = mapped_column(server_default="0", comment="The last event's seq.")
    attempt: Mapped[int] = mapped_column(server_default="0", comment="The fencing token of the last attempt.")
    crashes: Mapped[int] = mapped_column(server_default="0", comment="Attempts whose lease ran out.")
    retries: Mapped[int] = mapped_column(server_default="0", comment="Times that a client asked for it again.")
    lease_owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    cancel_deadline: Mapped[datetime | None]
    checkpoints: Mapped[list[dict[str, Any]]] = mapped_column(server_default="[]", comment="Newest first.")
    progress: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    queued_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    retention_seconds: Mapped[int] = mapped_column(comment="From its end to its purge.")
    expires_at: Mapped[datetime | None]
    purged_at: Mapped[datetime | None] = mapped_column(comment="Gone for clients since then; its bytes go next.")
    queue_deadline: Mapped[datetime] = mapped_column(comment="While a sweep waits, for its members' ends.")
    runtime_deadline: Mapped[datetime | None]
    publish_at: Mapped[datetime] = mapped_column(comment="When the wake-up message is due (again).")
    publishes: Mapped[int] = mapped_column(server_default="0")
    tidied_at: Mapped[datetime | None] = mapped_column(comment="When the files of losing attempts were removed.")
    artifact_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="Of all it published.")
    traceparent: Mapped[str | None] = mapped_column(comment="W3C Trace Context of the request that submitted it.")


class TallyRow(Base):
    """So many times did something happen to jobs. A trigger on `jobs` writes these; `app.db.metrics` adds them up."""

    __tablename__ = "job_tallies"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    metric: Mapped[str]
    kind: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="")
    reason: Mapped[str] = mapped_column(server_default="")
    le: Mapped[float | None] = mapped_column(
        Double, comment="Of a duration: its bucket's upper bound, seconds; maybe Infinity."
    )
    count: Mapped[int] = mapped_column(BigInteger, server_default="1")
    microseconds: Mapped[int] = mapped_column(
        BigInteger, server_default="0", comment="Whole, so that no order of adding makes a sum smaller."
    )


class EventRow(Base):
    __tablename__ = "job_events"
    __table_args__ = (
        CheckConstraint("seq > 0", name="seq_positive"),
        # A job ends once, and once more for each retry that a client asked for, whatever races.
        Index("uq_job_events_terminal", "job_id", "retry", unique=True, postgresql_where=text(f"type IN {TERMINAL}")),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str]
    level: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    attempt: Mapped[int]
    retry: Mapped[int] = mapped_column(server_default="0")
    data: Mapped[dict[str, Any]]


class ArtifactRow(Base):
    __tablename__ = "job_artifacts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    role: Mapped[str]
    media_type: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PurgedRow(Base):
    """What is left of a purged job: enough to say that it is gone, and to whom."""

    __tablename__ = "purged_jobs"
    __table_args__ = (Index("ix_purged_jobs_purged_at", "purged_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    purged_at: Mapped[datetime]


class IdempotencyRow(Base):
    """What a request with an `Idempotency-Key` made, and was answered."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_keys_created_at", "created_at"),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    content_sha256: Mapped[str]
    # The column's name is from before there was anything but jobs: processes of the release before go on with it.
    made_id: Mapped[str | None] = mapped_column(
        "job_id", comment="Set, as is the answer, by the transaction that made the key."
    )
    answer: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class TenantRow(Base):
    """Limits of a tenant's own, NULL where the operator's defaults hold, as they do for one without a row."""

    __tablename__ = "tenants"
    __table_args__ = (
        CheckConstraint("max_queued >= 0", name="max_queued_counts"),
        CheckConstraint("max_running >= 0", name="max_running_counts"),
        CheckConstraint("max_stored_bytes >= 0", name="max_stored_bytes_counts"),
        CheckConstraint("requests_per_minute >= 0", name="requests_per_minute_counts"),
    )

    name: Mapped[str] = mapped_column(primary_key=True)
    max_queued: Mapped[int | None] = mapped_column(BigInteger)
    max_running: Mapped[int | None] = mapped_column(BigInteger)
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    requests_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    stored_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="Kept by a trigger on jobs.")


class SecretRow(Base):
    """What all processes must know and nobody chose: made by the first one that asks."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class ApiKeyRow(Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    secret_sha256: Mapped[str]
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    replaced_by: Mapped[str | None] = mapped_column(comment="The key that it was rotated to.")


class WebhookRow(Base):
    """Where a tenant wants to be told of its jobs. Its secrets sign, so that no hash of them would do."""

    __tablename__ = "webhooks"
    __table_args__ = (
        CheckConstraint("cardinality(events) > 0", name="asks_for_something"),
        CheckConstraint("disabled_reason IN ('client', 'gone', 'failing')", name="reason_known"),
        CheckConstraint("(disabled_reason IS NULL) = (disabled_at IS NULL)", name="disabled_with_reason"),
        CheckConstraint(
            "(previous_secret IS NULL) = (previous_secret_expires_at IS NULL)", name="previous_secret_expires"
        ),
        Index("ix_webhooks_tenant", "tenant", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    url: Mapped[str]
    events: Mapped[list[str]]
    description: Mapped[str | None]
    secret: Mapped[str]
    previous_secret: Mapped[str | None] = mapped_column(comment="Signs too, until it expires.")
    previous_secret_expires_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]
    disabled_at: Mapped[datetime | None]
    failing_since: Mapped[datetime | None] = mapped_column(comment="The first failure after the last success.")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DeliveryRow(Base):
    """An event on its way to one webhook; `id` is the `webhook-id` of all its attempts."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'succeeded', 'failed')", name="status_known"),
        CheckConstraint("(status = 'pending') = (next_attempt_at IS NOT NULL)", name="next_attempt_while_pending"),
        Index("ix_webhook_deliveries_listing", "webhook_id", text("created_at DESC"), text("id DESC")),
        Index(
            "ix_webhook_deliveries_pending",
            "webhook_id",
            "next_attempt_at",
            postgresql_where=text("status = 'pending'"),
        ),
        Index("ix_webhook_deliveries_created_at", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    event: Mapped[str]
    job_id: Mapped[str | None] = mapped_column(comment="Of an event of a job, which may be purged since.")
    payload: Mapped[str] = mapped_column(comment="What is sent and signed, byte for byte.")
    status: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = mapped_column(server_default="0")
    failures: Mapped[int] = mapped_column(server_default="0", comment="Since it was asked for, or asked for again.")
    next_attempt_at: Mapped[datetime | None] = mapped_column(
        server_default=func.now(), comment="While one is under way: when it is taken for lost."
    )
    last_attempt_at: Mapped[datetime | None]
    response_status: Mapped[int | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WorkerRow(Base):
    """A worker's sign of life, for people and `/v1/system`; also, how many members of a sweep another one leaves to it.
    What state a job is in never rests on it."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str]
    device_name: Mapped[str]
    threads: Mapped[int]
    versions: Mapped[dict[str, Any]]
    job_id: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_seen_at: Mapped[datetime] = mapped_column(server_default=func.now())


# Inserting by the table skips the model's way, which is made for many rows and takes as long again for one.
JOBS = cast("Table", JobRow.__table__)
EVENTS = cast("Table", EventRow.__table__)
