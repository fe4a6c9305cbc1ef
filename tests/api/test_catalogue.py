from __future__ import annotations

import httpx
import pytest

from app.contract.report import SCHEMAS
from tests.specs import Document
from worker.engine.device import choose


def test_the_options_say_what_a_spec_may_ask_for(idle_http: httpx.Client) -> None:
    options = idle_http.get("/v1/options").json()

    assert set(options["kinds"]) == {"train", "prune", "compare", "sweep", "import", "dataset"}
    assert options["datasets"] == ["digits", "mnist", "fashion-mnist", "kmnist"]
    strength = options["penalties"]["l1"]["fields"]["strength"]
    assert strength["default"] == 0.001
    epochs = options["kinds"]["train"]["definitions"]["TrainingSpec"]["properties"]["epochs"]
    assert (epochs["default"], epochs["minimum"], epochs["maximum"]) == (5, 1, 1000)
    assert "fc1.weight" in options["tensors"]
    assert "model.safetensors" in options["artifacts"]


def test_every_data_set_tells_its_size(idle_http: httpx.Client) -> None:
    sets = idle_http.get("/v1/options").json()["dataset_facts"]

    assert (sets["digits"]["train_images"], sets["digits"]["test_images"]) == (1_437, 360)
    assert (sets["mnist"]["train_images"], sets["mnist"]["test_images"]) == (60_000, 10_000)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_schema_is_published(idle_http: httpx.Client, name: str) -> None:
    assert idle_http.get(f"/v1/schemas/{name}").json()["properties"]


def test_a_schema_that_is_not_there_is_named_with_those_there_are(idle_http: httpx.Client) -> None:
    answer = idle_http.get("/v1/schemas/reprot")

    assert answer.status_code == 404
    assert "report" in answer.json()["detail"]


def test_the_system_tells_its_worker(http: httpx.Client, trained: Document) -> None:
    assert trained["done"]
    system = http.get("/v1/system").json()

    (worker,) = system["workers"]
    assert (worker["alive"], worker["device"]) == (True, choose("auto").type)
    assert worker["threads"] >= 1
    assert "torch" in worker["versions"]
    assert system["database"]
    assert system["broker"]
    assert system["queued"] >= 0


def test_a_ready_service_says_what_it_asked(idle_http: httpx.Client) -> None:
    assert idle_http.get("/livez").json() == {"status": "ok"}
    assert idle_http.get("/readyz").json() == {"status": "ok", "database": True, "migrated": True, "broker": True}


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_a_probe_may_ask_for_no_body(idle_http: httpx.Client, path: str) -> None:
    answer, whole = idle_http.head(path), idle_http.get(path)

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Length"] == whole.headers["Content-Length"]
