"""Members of a sweep that one worker claims and trains together, through all of a worker but its process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch
from sqlalchemy import event
from sqlalchemy.orm import Session, sessionmaker

from app.contract.report import Manifest, Report
from app.contract.spec import parse_spec
from app.db import jobs, tenants, workers
from app.db.models import EventRow
from app.services import jobs as service
from app.services.jobs import Terms
from tests.engine.few import BATCH, FEW
from tests.limits import NO_LIMITS
from tests.making import at_hand
from tests.specs import sweep_spec, train_spec
from tests.worker.conftest import Read, Submit
from worker.engine.lockstep import Together
from worker.runner import Runtime, run_job

TERMS = Terms(retention_days=1, limits=NO_LIMITS)
SGD = {"optimizer": {"name": "sgd"}, "learning_rate": 0.01}
"""It does not blow rounding up, as Adam does."""
TRAINING = {"epochs": 1, "device": "cpu", "batch_size": BATCH, **SGD}
BASE = train_spec(training=TRAINING)
SEEDS = [1, 2, 3]
TWO = {"seeds": [1, 2]}

Sweep = Callable[..., Sequence[str]]


@pytest.fixture
def runtime(runtime: Runtime) -> Runtime:
    """Nobody asks how well these networks learn."""
    return replace(runtime, datasets=FEW)


@pytest.fixture
def worker(runtime: Runtime) -> Runtime:
    """Trains members together, though it has no GPU."""
    return replace(runtime, together=Together(16, "any"))


@pytest.fixture
def submit_sweep(sessions: sessionmaker[Session], read: Read) -> Sweep:
    """Returns the ids of the sweep's members, in their order, and at the end the sweep's own."""

    def submit_sweep(**overrides: object) -> Sequence[str]:
        spec = sweep_spec(**{"base": BASE, "grid": {"seeds": SEEDS}, **overrides})
        with sessions.begin() as session:
            sweep_id = service.submit(session, "t", parse_spec(spec), TERMS).row.id
        return [*read(sweep_id).sources, sweep_id]

    return submit_sweep


def _document(runtime: Runtime, read: Read, job_id: str, name: str) -> bytes:
    return (runtime.store.folder(job_id, read(job_id).attempt) / name).read_bytes()


def _report(runtime: Runtime, read: Read, job_id: str) -> Report:
    return Report.model_validate_json(_document(runtime, read, job_id, "report.json"))


def _together(runtime: Runtime, read: Read, job_ids: Sequence[str]) -> list[int | None]:
    """What the receipts say."""
    texts = [_document(runtime, read, job_id, "manifest.json") for job_id in job_ids]
    return [Manifest.model_validate_json(text).receipt.together for text in texts]


def _events(runtime: Runtime, job_id: str) -> Sequence[EventRow]:
    with runtime.sessions() as session:
        return jobs.events(session, job_id, after=0, limit=100)


def _told(runtime: Runtime, job_id: str) -> list[str]:
    return [each.data.get("phase", each.type) for each in _events(runtime, job_id)]


def _statuses(read: Read, job_ids: Sequence[str]) -> list[str]:
    return [read(job_id).status for job_id in job_ids]


def test_one_message_runs_all_members_and_each_is_what_it_would_be_alone(
    worker: Runtime, runtime: Runtime, submit_sweep: Sweep, submit: Submit, read: Read
) -> None:
    base = {**BASE, "fine_tuning": {"epochs": 1, "batch_size": BATCH, **SGD}}
    alone = []
    for seed in SEEDS:
        tuned = {course: {**base[course], "seed": seed} for course in ("training", "fine_tuning")}
        alone.append(submit({**base, **tuned}))
        run_job(alone[-1], runtime)
    *members, sweep_id = submit_sweep(base=base)
    woken: list[str] = []
    at: list[str | None] = []

    run_job(members[2], replace(worker, wake=woken.append, working_on=at.append))

    assert _statuses(read, members) == ["succeeded"] * 3
    assert _together(worker, read, members) == [3] * 3
    assert woken == [sweep_id]
    assert at == [*members, None]  # each a job that has not ended
    for member, other in zip(members, alone, strict=True):
        ours, theirs = _report(worker, read, member), _report(runtime, read, other)
        assert ours.accuracy_before.loss == pytest.approx(theirs.accuracy_before.loss, rel=0.005)
        assert ours.accuracy_after.loss == pytest.approx(theirs.accuracy_after.loss, rel=0.03)
        assert ours.total.nonzero_after == pytest.approx(theirs.total.nonzero_after, rel=0.01)
        assert _told(worker, member) == _told(runtime, other)
    run_job(sweep_id, worker)
    assert read(sweep_id).status == "succeeded"


def test_the_same_sweep_comes_to_the_same_bits(
    worker: Runtime, submit_sweep: Sweep, read: Read, sessions: sessionmaker[Session]
) -> None:
    models = []
    for _ in range(2):
        *members, sweep_id = submit_sweep(grid=TWO)
        run_job(members[0], worker)
        models.append([_document(worker, read, job_id, "model.safetensors") for job_id in members])
        with sessions.begin() as session:  # nobody puts these side by side
            service.cancel(session, "t", sweep_id)
    assert models[0] == models[1]


FOUR = {"seeds": [1, 2, 3, 4]}


def test_their_files_are_made_by_processes_beside_the_worker_s(
    worker: Runtime,
    runtime: Runtime,
    submit_sweep: Sweep,
    submit: Submit,
    read: Read,
    caplog: pytest.LogCaptureFixture,
) -> None:
    alone = submit(BASE)
    run_job(alone, runtime)
    *members, sweep_id = submit_sweep(grid=FOUR)
    beside: list[list[psutil.Process]] = []

    at_work = replace(worker, together=Together(16, "any", processes=2))
    run_job(members[0], replace(at_work, working_on=lambda _: beside.append(at_hand())))

    assert (len(beside[0]), len(beside[-1])) == (0, 2)  # when the first begins, and when the last ends
    assert at_hand() == []
    assert not any("made here" in message for message in caplog.messages)
    assert _statuses(read, members) == ["succeeded"] * 4
    for member in members:
        assert _told(worker, member) == _told(runtime, alone)
        assert _report(worker, read, member).latency is not None
    run_job(sweep_id, worker)
    assert read(sweep_id).status == "succeeded"


def test_one_that_is_cancelled_while_its_files_are_made_leaves_and_the_others_go_on(
    worker: Runtime, submit_sweep: Sweep, read: Read, sessions: sessionmaker[Session]
) -> None:
    *members, _ = submit_sweep(grid=FOUR)
    cancelled: list[str] = []

    @event.listens_for(sessions, "after_commit")
    def cancel(_: Session) -> None:
        if not cancelled and "reporting" in _told(worker, members[1]):
            cancelled.append(members[1])
            with sessions.begin() as session:
                service.cancel(session, "t", members[1])

    run_job(members[0], replace(worker, together=Together(16, "any", processes=2)))

    assert cancelled
    assert _statuses(read, members) == ["succeeded", "cancelled", "succeeded", "succeeded"]
    assert not (worker.store.folder(members[1], 1) / "manifest.json").exists()


def test_by_default_a_cpu_runs_one_after_another(runtime: Runtime, submit_sweep: Sweep, read: Read) -> None:
    *members, _ = submit_sweep()
    run_job(members[0], replace(runtime, together=Together(16)))
    assert _statuses(read, members) == ["succeeded", "queued", "queued"]
    assert _together(runtime, read, members[:1]) == [None]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA drives")
def test_by_default_a_gpu_runs_all_at_once(runtime: Runtime, submit_sweep: Sweep, read: Read) -> None:
    *members, _ = submit_sweep(base={**BASE, "training": {"epochs": 1, "batch_size": BATCH, **SGD}})
    run_job(members[0], replace(runtime, together=Together(16)))
    assert _statuses(read, members) == ["succeeded"] * 3
    assert _together(runtime, read, members) == [3] * 3


def test_no_more_are_claimed_than_a_worker_may_train_at_once(worker: Runtime, submit_sweep: Sweep, read: Read) -> None:
    *members, _ = submit_sweep()
    run_job(members[0], replace(worker, together=Together(2, "any")))
    assert _statuses(read, members) == ["succeeded", "succeeded", "queued"]
    assert _together(worker, read, members[:2]) == [2] * 2


def test_a_worker_with_nothing_to_do_is_left_its_share(
    worker: Runtime, submit_sweep: Sweep, read: Read, sessions: sessionmaker[Session]
) -> None:
    told: dict[str, Any] = {"device": "cpu", "device_name": "c", "threads": 1, "versions": {}, "job_id": None}
    with sessions.begin() as session:
        for worker_id in ("worker of the test", "another"):
            workers.seen(session, worker_id=worker_id, **told)
    *members, _ = submit_sweep()

    run_job(members[0], worker)
    assert _statuses(read, members) == ["succeeded", "succeeded", "queued"]
    assert _together(worker, read, members[:2]) == [2] * 2

    run_job(members[2], replace(worker, owner="another/1"))
    assert _together(worker, read, members) == [2, 2, None]


def test_the_tenants_running_cap_holds(
    worker: Runtime, submit_sweep: Sweep, read: Read, sessions: sessionmaker[Session]
) -> None:
    *members, _ = submit_sweep()
    with sessions.begin() as session:
        tenants.set_limits(session, "t", {"max_running": 2})
    reminded: list[str] = []

    run_job(members[0], replace(worker, remind=reminded.append))

    assert _statuses(read, members) == ["succeeded", "succeeded", "queued"]
    assert reminded == [members[2]] * 2


def test_members_of_other_widths_are_left_to_others(worker: Runtime, submit_sweep: Sweep, read: Read) -> None:
    narrow, wide = ({"channels": [2, 2, 4], "hidden": hidden} for hidden in (8, 12))
    *members, _ = submit_sweep(grid={"widths": [narrow, wide], "seeds": [1, 2]})
    run_job(members[0], worker)
    assert _statuses(read, members) == ["succeeded", "succeeded", "queued", "queued"]
    run_job(members[2], worker)
    assert _together(worker, read, members) == [2] * 4


def test_members_with_and_without_a_penalty_are_not_mixed(worker: Runtime, submit_sweep: Sweep, read: Read) -> None:
    base = {**BASE, "regularization": {"penalty": "l1"}}
    *members, _ = submit_sweep(base=base, grid={"strengths": [0, 0.01, 0.02]})
    run_job(members[0], worker)
    assert _statuses(read, members) == ["succeeded", "queued", "queued"]
    run_job(members[0], worker)
    assert _together(worker, read, members) == [None, 2, 2]


def test_jobs_of_no_sweep_and_of_another_stay_where_they_are(
    worker: Runtime, submit_sweep: Sweep, submit: Submit, read: Read
) -> None:
    first, other = submit_sweep(grid=TWO), submit_sweep(grid=TWO)
    alone = submit(BASE)
    run_job(first[0], worker)
    assert _statuses(read, first[:-1]) == ["succeeded"] * 2
    assert _statuses(read, [*other[:-1], alone]) == ["queued"] * 3


def test_one_that_is_cancelled_leaves_and_the_others_go_on(
    worker: Runtime, submit_sweep: Sweep, read: Read, sessions: sessionmaker[Session]
) -> None:
    *members, _ = submit_sweep(base={**BASE, "training": {**TRAINING, "epochs": 5}})
    cancelled: list[str] = []

    @event.listens_for(sessions, "after_commit")
    def cancel(_: Session) -> None:
        if not cancelled and (read(members[1]).progress or {}).get("unit") == "steps":
            cancelled.append(members[1])
            with sessions.begin() as session:
                service.cancel(session, "t", members[1])

    at: list[str | None] = []
    run_job(members[0], replace(worker, working_on=at.append))

    assert cancelled
    assert _statuses(read, members) == ["succeeded", "cancelled", "succeeded"]
    assert not (worker.store.folder(members[1], 1) / "manifest.json").exists()
    assert (at[0], at[-1]) == (members[0], None)
    # At once, and not when the course of all was over.
    epochs = [each.at for each in _events(worker, members[0]) if each.type == "epoch"]
    assert _events(worker, members[1])[-1].at < epochs[-1]


def test_one_that_fails_fails_alone(worker: Runtime, submit_sweep: Sweep, read: Read) -> None:
    """So strong a penalty drives the weights out of all bounds."""
    training = {**TRAINING, "epochs": 4, "optimizer": {"name": "sgd", "momentum": 0}, "learning_rate": 0.3}
    base = train_spec(training=training, regularization={"penalty": "l1"})
    *members, sweep_id = submit_sweep(base=base, grid={"strengths": [0.05, 1, 0.3]})

    run_job(members[0], worker)

    failed = read(members[1])
    assert failed.error is not None
    assert (failed.status, failed.error["code"]) == ("failed", "non_finite_loss")
    assert failed.error["details"]["phase"] == "training"
    others = [members[0], members[2]]
    assert _statuses(read, others) == ["succeeded"] * 2
    assert _together(worker, read, others) == [3] * 2
    run_job(sweep_id, worker)
    assert read(sweep_id).status == "succeeded"


def test_missing_data_fails_each(worker: Runtime, submit_sweep: Sweep, read: Read) -> None:
    *members, _ = submit_sweep(base={**BASE, "dataset": {"name": "mnist"}})
    run_job(members[0], worker)
    for job_id in members:
        row = read(job_id)
        assert row.error is not None
        assert (row.status, row.error["code"]) == ("failed", "dataset_unavailable")


def test_a_damaged_spec_of_one_is_its_own_failure(
    worker: Runtime, submit_sweep: Sweep, read: Read, sessions: sessionmaker[Session]
) -> None:
    *members, _ = submit_sweep()
    with sessions.begin() as session:  # a row that no API of ours would have written
        row = jobs.get(session, members[1])
        assert row is not None
        row.spec = {**row.spec, "model": {"channels": "many"}}
    run_job(members[0], worker)
    assert _statuses(read, members) == ["succeeded", "queued", "succeeded"]
    run_job(members[1], worker)
    assert read(members[1]).status == "failed"


def test_a_failures_log_is_its_own(worker: Runtime, submit_sweep: Sweep, read: Read) -> None:
    *members, _ = submit_sweep(base={**BASE, "dataset": {"name": "mnist"}})
    run_job(members[0], worker)
    details = [json.dumps((read(job_id).error or {})["details"]) for job_id in members]
    assert not any(other in text for text in details for other in members)


def test_after_a_second_crash_a_member_goes_alone(
    worker: Runtime, submit_sweep: Sweep, read: Read, sessions: sessionmaker[Session]
) -> None:
    *members, _ = submit_sweep()
    with sessions.begin() as session:
        for job_id, crashes in zip(members, (1, 2, 0), strict=True):
            row = jobs.get(session, job_id)
            assert row is not None
            row.crashes = crashes
    run_job(members[0], worker)
    assert _statuses(read, members) == ["succeeded", "queued", "succeeded"]
    run_job(members[1], worker)
    assert _together(worker, read, members) == [2, None, 2]
