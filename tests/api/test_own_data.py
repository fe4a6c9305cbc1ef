"""A data set of a client's own: uploaded, checked, trained on, pruned on, and found again in all that comes of it."""

from __future__ import annotations

import json

import httpx
import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load

from tests.api.test_bad_input import problem
from tests.engine.data_sets import arrays, folders, zipped
from tests.specs import Document, finished, prune_spec, train_spec
from tests.waiting import wait_until

CONTENT = arrays(60, 12)


def _checked(http: httpx.Client, content: bytes) -> Document:
    headers = {"Content-Type": "application/zip"}
    answer = http.post("/v1/datasets", content=content, headers=headers, params={"name": "mine"})
    url = answer.raise_for_status().headers["Location"]

    def look() -> Document | None:
        dataset: Document = http.get(url).json()
        return dataset if dataset["status"] != "checking" else None

    return wait_until(look, timeout=120, what="the data set is checked")


@pytest.fixture(scope="module")
def mine(http: httpx.Client) -> Document:
    return _checked(http, zipped(folders(CONTENT)))


def _artifact(http: httpx.Client, job: Document, name: str) -> bytes:
    return http.get(f"{job['links']['artifacts']}/{name}").raise_for_status().content


def test_a_network_is_trained_and_pruned_on_it(http: httpx.Client, mine: Document) -> None:
    assert (mine["status"], mine["format"], mine["class_names"]) == ("ready", "images", ["a", "b", "c"])
    assert mine["shape"] == {"channels": 3, "height": 12, "width": 10, "classes": 3}
    own = {"id": mine["id"], "validation_images": 6}
    model = {"channels": [3, 4, 5], "hidden": 6}
    trained = finished(http, train_spec(dataset=own, model=model, training={"epochs": 8, "batch_size": 10}))
    pruned = finished(http, prune_spec(trained["id"], fine_tuning={"epochs": 1, "batch_size": 10}))

    assert pruned["spec"]["dataset"] == trained["spec"]["dataset"]
    assert pruned["result"]["accuracy_before"] > 0.9
    for job in (trained, pruned):
        assert (job["result"]["dataset"], job["result"]["dataset_sha256"]) == (mine["id"], mine["sha256"])
        receipt = json.loads(_artifact(http, job, "manifest.json"))["receipt"]
        assert (receipt["dataset"], receipt["dataset_sha256"]) == (mine["id"], mine["sha256"])
        assert {f"{mine['id']}/{name}" for name in ("dataset.safetensors", "manifest.json")} <= receipt["inputs"].keys()
        report = json.loads(_artifact(http, job, "report.json"))
        assert (report["dataset"], report["dataset_name"]) == (mine["id"], "mine")
        state = load(_artifact(http, job, "model.safetensors"))
        assert (state["layer1.0.weight"].shape, state["fc1.weight"].shape) == ((3, 3, 5, 5), (6, 5 * 3 * 2))
        images = CONTENT["test_images"].transpose(0, 3, 1, 2).astype(np.float32) / 255
        for name in ("model.onnx", "compact.onnx"):
            session = onnxruntime.InferenceSession(_artifact(http, job, name), providers=["CPUExecutionProvider"])
            logits = session.run(["logits"], {"images": images})[0]
            right = np.count_nonzero(logits.argmax(axis=1) == CONTENT["test_labels"])
            assert right / len(logits) == job["result"]["accuracy_after"]
    report = json.loads(_artifact(http, trained, "report.json"))
    assert [each["label"] for each in report["classes"]] == [0, 1, 2]
    assert report["layers"][0]["macs_dense"] == 3 * 3 * 25 * 120

    for spec, pointer in (
        (prune_spec(trained["id"], dataset={"name": "digits"}), "/source"),
        (train_spec(initial={"job_id": trained["id"]}), "/initial"),
        (
            train_spec(training={"epochs": 1, "distillation": {"teacher": {"job_id": trained["id"]}}}),
            "/training/distillation/teacher",
        ),
    ):
        spec.pop("model", None)
        error = problem(http.post("/v1/jobs", json=spec), 422, "invalid_spec")["errors"][0]
        assert (error["pointer"], error["code"]) == (pointer, "dataset_misfit")
        assert "images of 3 channels and 6 features after pooling, in 3 classes" in error["detail"]


def test_one_that_is_none_is_rejected_with_the_reason(http: httpx.Client) -> None:
    rejected = _checked(http, zipped({**folders(CONTENT), "train/a/x.png": b"nonsense"}))

    assert (rejected["status"], rejected["error"]["code"]) == ("rejected", "invalid_dataset")
    assert rejected["error"]["message"].startswith("the uploaded file: train/a/x.png cannot be read as PNG or JPEG")
    assert rejected["expires_at"] is not None
    problem(http.post(f"{rejected['links']['job']}/retry"), 409, "upload_not_kept")

    answer = http.post("/v1/jobs", json=train_spec(dataset={"id": rejected["id"]}))
    [error] = problem(answer, 409, "source_has_no_result")["errors"]
    assert error["detail"].endswith(f"It failed as invalid_dataset: {rejected['error']['message']}")
