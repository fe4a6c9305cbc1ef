from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from app.local import Stack
from secateur_client import Client
from tests.cli.conftest import Secateur
from tests.specs import Document, submit, sweep_spec, train_spec


@pytest.fixture
def queued(idle_http: httpx.Client) -> Document:
    return submit(idle_http, train_spec(display_name="waits", labels={"team": "a"}))


def test_status_shows_what_a_job_came_to(secateur: Secateur, trained: Document) -> None:
    done = secateur("status", trained["id"])

    shown = dict(line.strip().split(maxsplit=1) for line in done.out.splitlines())
    result = trained["result"]
    assert done.code == 0
    assert (shown["job"], shown["kind"], shown["status"]) == (trained["id"], "train", "succeeded")
    assert (shown["name"], shown["labels"]) == ("trained", "team=a")
    assert shown["non-zeros"].startswith(f"{result['nonzero_after']:,} of {result['parameters']:,} ")
    assert f"{100 * result['accuracy_after']:.2f} % at the end" in shown["accuracy"]


def test_status_as_json_is_the_resource(secateur: Secateur, trained: Document) -> None:
    assert secateur("status", trained["id"], "--json").document() == trained


def test_a_job_that_is_not_there_is_refused(secateur: Secateur) -> None:
    done = secateur("status", "job_none")
    assert (done.code, done.out) == (3, "")
    assert "job_none" in done.err


def test_wait_for_a_job_that_has_succeeded_returns_at_once(secateur: Secateur, trained: Document) -> None:
    assert secateur("wait", trained["id"], "--json").document()["status"] == "succeeded"


def test_list_shows_the_newest_first_and_no_more_than_asked(idle: Secateur, idle_http: httpx.Client) -> None:
    names = ["first", "second", "third"]
    ids = [submit(idle_http, train_spec(display_name=name))["id"] for name in names]

    lines = idle("list", "--limit", 2).out.splitlines()

    assert [line.split()[0] for line in lines if "job_" in line] == [ids[2], ids[1]]
    assert [job["display_name"] for job in idle("list", "--limit", 3, "--json").document()] == names[::-1]


def test_a_narrow_terminal_folds_names_and_tears_nothing_else(idle: Secateur, idle_http: httpx.Client) -> None:
    job_id = submit(idle_http, train_spec(display_name="a name of many words, wider than is left"))["id"]

    lines = idle.told(COLUMNS="80")("list", "--limit", 1).out.splitlines()

    assert max(map(len, lines)) <= 80
    assert any(line.split()[:3] == [job_id, "train", "queued"] for line in lines)
    assert "a name of many words, wider than is left" in idle("list", "--limit", 1).out  # no terminal, no edge


def test_list_narrows_by_status_and_kind(idle: Secateur, queued: Document, idle_http: httpx.Client) -> None:
    cancelled = submit(idle_http, train_spec())["id"]
    idle_http.post(f"/v1/jobs/{cancelled}/cancel")

    found = idle("list", "--status", "cancelled", "--limit", 1000, "--json").document()
    assert cancelled in {job["id"] for job in found}
    assert {job["status"] for job in found} == {"cancelled"}
    assert idle("list", "--kind", "compare", "--json").document() == []
    assert idle("list", "--status", "asleep").code == 3


def test_list_narrows_to_the_members_of_a_sweep(idle: Secateur, idle_http: httpx.Client) -> None:
    sweep = submit(idle_http, sweep_spec())
    found = idle("list", "--sweep", sweep["id"], "--json").document()
    assert {(job["kind"], job["sweep_id"]) for job in found} == {("train", sweep["id"])}
    assert len(found) == 2
    assert "waiting" in idle("status", sweep["id"]).out
    assert "0/2 members" in idle("status", sweep["id"]).out
    assert sweep["id"] in idle("status", found[0]["id"]).out


def test_a_log_of_several_pages_is_told_once(idle_client: Client, idle_service: Stack, idle_http: httpx.Client) -> None:
    job_id = submit(idle_http, train_spec())["id"]
    with psycopg.connect(idle_service.database_url) as connection:
        connection.execute(
            "INSERT INTO job_events (job_id, seq, type, level, attempt, data) "
            "SELECT %s, seq, 'epoch', 'info', 1, '{}' FROM generate_series(2, 250) AS seq",
            [job_id],
        )
    with idle_client as client:
        told = [event.seq for event, _ in zip(client.events(job_id), range(1_000), strict=False)]
    assert told == list(range(1, 251))


def test_a_list_goes_on_over_its_pages(idle_client: Client, idle_http: httpx.Client) -> None:
    ids = [submit(idle_http, train_spec())["id"] for _ in range(5)]
    with idle_client as client:
        newest = [job.id for job, _ in zip(client.list(page_size=2), range(5), strict=False)]
        everything = [job.id for job in client.list(page_size=2)]
    assert newest == ids[::-1]
    assert everything[:5] == newest
    assert len(everything) == len(set(everything))


def test_cancel_ends_a_queued_job_and_may_be_repeated(idle: Secateur, queued: Document) -> None:
    assert idle("cancel", queued["id"], "--json").document()["status"] == "cancelled"
    assert "cancelled" in idle("cancel", queued["id"]).out


def test_cancel_of_a_finished_job_is_refused(secateur: Secateur, trained: Document) -> None:
    done = secateur("cancel", trained["id"])
    assert (done.code, done.out) == (3, "")
    assert "succeeded" in done.err


def test_retry_runs_a_failed_job_again(secateur: Secateur, http: httpx.Client) -> None:
    job_id = submit(http, train_spec(dataset={"name": "kmnist"}))["id"]
    assert secateur("wait", job_id).code == 1
    assert secateur("retry", job_id, "--json").document()["status"] == "queued"
    again = secateur("wait", job_id, "--json")
    assert (again.code, json.loads(again.out)["attempt"]) == (1, 2)  # its data are still not there


def test_retry_of_a_job_that_has_not_failed_is_refused(secateur: Secateur, trained: Document) -> None:
    done = secateur("retry", trained["id"])
    assert (done.code, done.out) == (3, "")
    assert "Only a failed job can be retried" in done.err


def test_a_rerun_is_a_new_job_and_says_of_which(secateur: Secateur, trained: Document) -> None:
    job_id = secateur("rerun", trained["id"]).out.strip()
    shown = secateur("wait", job_id)
    assert (shown.code, trained["id"] in shown.out) == (0, True)


def test_deleted_jobs_are_gone(secateur: Secateur, http: httpx.Client) -> None:
    jobs = [submit(http, train_spec())["id"] for _ in range(2)]
    for job_id in jobs:
        http.post(f"/v1/jobs/{job_id}/cancel")
        secateur("wait", job_id)

    done = secateur("delete", *jobs)

    assert (done.code, done.out) == (0, "")
    assert all(f"{job_id} is deleted" in done.err for job_id in jobs)
    assert secateur("status", jobs[0]).code == 3
    assert "deleted" in secateur("status", jobs[0]).err


def test_events_are_shown_from_the_first_to_the_last(secateur: Secateur, trained: Document) -> None:
    events = secateur("events", trained["id"], "--json").document()

    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    shown = secateur("events", trained["id"])
    assert shown.code == 0
    assert all(event["type"] in shown.out for event in events)


def test_a_job_without_artifacts_says_why(idle: Secateur, queued: Document) -> None:
    done = idle("download", queued["id"])
    assert (done.code, done.out) == (1, "")
    assert f"{queued['id']} has no artifacts: it is queued" in done.err
    assert not (idle.folder / queued["id"]).exists()


def test_download_goes_to_a_folder_named_as_the_job(secateur: Secateur, trained: Document, http: httpx.Client) -> None:
    listed = http.get(trained["links"]["artifacts"]).json()["items"]

    assert secateur("download", trained["id"], "--json").document() == listed
    assert _digests(secateur.folder / trained["id"]) == {each["name"]: each["sha256"] for each in listed}


def test_download_takes_what_is_named_and_repairs_what_is_damaged(secateur: Secateur, trained: Document) -> None:
    names = ["report.json", "report.csv"]
    artifacts = secateur("download", trained["id"], "here", *names, "--json").document()
    expected = {each["name"]: each["sha256"] for each in artifacts}
    assert _digests(secateur.folder / "here") == expected
    whole = (secateur.folder / "here/report.json").stat()
    (secateur.folder / "here/report.csv").write_text("damaged")

    assert secateur("download", trained["id"], "here", *names).code == 0

    assert _digests(secateur.folder / "here") == expected
    assert (secateur.folder / "here/report.json").stat() == whole  # not fetched again


def test_an_artifact_that_is_not_there_is_wrong_usage(secateur: Secateur, trained: Document) -> None:
    done = secateur("download", trained["id"], "here", "comparison.png")
    assert done.code == 2
    assert "comparison.png" in done.err
    assert not (secateur.folder / "here").exists()


def test_options_are_yaml_to_read_and_json_for_scripts(secateur: Secateur) -> None:
    found: Any = secateur("options", "--json").document()
    assert yaml.load(secateur("options").out, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) == found
    assert {"digits", "mnist"} <= set(found["datasets"])


def test_system_shows_the_queue_and_the_workers(secateur: Secateur, idle: Secateur, queued: Document) -> None:
    [worker] = [each for each in secateur("system", "--json").document()["workers"] if each["alive"]]
    shown = secateur("system").out
    assert worker["id"] in shown.replace("\n", "")
    assert "1 alive" in shown
    assert idle("system", "--json").document()["queued"] >= 1


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
