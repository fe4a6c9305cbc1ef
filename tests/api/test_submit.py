from __future__ import annotations

import httpx

from app.contract.training import TrainingSpec
from tests.specs import prune_spec, read, submit, train_spec


def test_a_submitted_job_is_accepted_with_its_address(idle_http: httpx.Client) -> None:
    answer = idle_http.post("/v1/jobs", json=train_spec(display_name="Ünë θ", labels={"team": "vision"}))

    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["Retry-After"] == "2"
    assert (job["status"], job["done"], job["phase"]) == ("queued", False, "waiting")
    assert (job["display_name"], job["labels"]) == ("Ünë θ", {"team": "vision"})
    assert job["result"] is job["error"] is job["started_at"] is None
    assert read(idle_http, job["id"]) | {"queue": None} == job


def test_the_stored_spec_has_every_default_filled_in(idle_http: httpx.Client) -> None:
    spec = submit(idle_http, {"kind": "train", "dataset": {"name": "mnist"}})["spec"]

    assert spec["model"] == {"architecture": "cnn", "channels": [16, 16, 32], "hidden": 300}
    assert spec["training"] == TrainingSpec().model_dump(mode="json")
    assert spec["regularization"] is spec["pruning"] is spec["initial"] is None
    assert spec["histogram"] == {"tensors": ["layer2.0.weight", "fc1.weight", "fc2.weight"], "bins": 256}


def test_a_penalty_and_a_pruning_have_the_defaults_of_the_experiment(idle_http: httpx.Client) -> None:
    spec = submit(idle_http, train_spec(regularization={"penalty": "l1"}, pruning={"method": "threshold"}))["spec"]

    assert spec["regularization"] == {"penalty": "l1", "strength": 0.001}
    assert spec["pruning"] == {
        "method": "threshold",
        "threshold": 0.01,
        "parameters": ["weight", "bias"],
        "layers": ["conv", "batchnorm", "linear"],
        "recalibrate_batchnorm": False,
        "schedule": {"name": "one-shot", "when": "after-training"},
    }


def test_validating_resolves_and_stores_nothing(idle_http: httpx.Client) -> None:
    before = idle_http.get("/v1/jobs", params={"limit": 1}).json()["items"]

    answer = idle_http.post(
        "/v1/jobs", params={"validate_only": True}, json={"kind": "train", "dataset": {"name": "mnist"}}
    )

    assert answer.status_code == 200
    assert answer.json()["spec"]["training"]["epochs"] == 5
    assert answer.json()["estimate"]["parameters"] == 481_214
    assert answer.json()["estimate"]["macs_per_image"] == 3_496_504
    assert idle_http.get("/v1/jobs", params={"limit": 1}).json()["items"] == before


def test_validating_refuses_what_submitting_would(idle_http: httpx.Client) -> None:
    answer = idle_http.post("/v1/jobs", params={"validate_only": True}, json=train_spec(kind="trian"))

    assert answer.status_code == 422


def test_a_pruning_takes_the_data_set_of_its_source(http: httpx.Client, trained: dict[str, str]) -> None:
    answer = http.post("/v1/jobs", params={"validate_only": True}, json=prune_spec(trained["id"]))

    assert answer.json()["spec"]["dataset"] == {"name": "digits", "id": None, "validation_images": 0}


def test_a_continued_training_takes_the_widths_of_its_checkpoint(http: httpx.Client, trained: dict[str, str]) -> None:
    initial = {"job_id": trained["id"], "artifact": "model.safetensors"}
    spec = {"kind": "train", "dataset": {"name": "digits"}, "initial": initial}

    answer = http.post("/v1/jobs", params={"validate_only": True}, json=spec)

    assert answer.json()["spec"]["model"]["channels"] == [4, 4, 8]
    assert answer.json()["spec"]["model"]["hidden"] == 16


def test_a_request_keeps_its_id(idle_http: httpx.Client) -> None:
    assert idle_http.get("/v1/jobs", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
    assert idle_http.get("/v1/jobs").headers["X-Request-Id"]
