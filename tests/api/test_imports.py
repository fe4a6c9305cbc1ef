"""A network that plain PyTorch trained is uploaded, and then pruned and trained on like any other."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from app.contract.datasets import DatasetName
from app.local import Stack
from tests.specs import FEW, Document, compare_spec, ended, finished, prune_spec, read, train_spec
from worker.engine.data import Dataset, DatasetStore
from worker.engine.pixels import scaled

CHANNELS, HIDDEN = (4, 5, 6), 12


class Plain(nn.Module):
    """The architecture as anybody would write it down."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c = CHANNELS
        self.layer1 = nn.Sequential(nn.Conv2d(1, a, 5, padding=2), nn.BatchNorm2d(a), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(nn.Conv2d(b, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU(), nn.MaxPool2d(2))
        self.fc1 = nn.Linear(c * 49, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, 10)

    def forward(self, images: Tensor) -> Any:
        return self.fc2(self.fc1(self.layer3(self.layer2(self.layer1(images))).flatten(1)))


class Trained(NamedTuple):
    state: dict[str, Tensor]
    accuracy: float


@pytest.fixture(scope="module")
def network() -> Trained:
    torch.manual_seed(0)
    data, plain = DatasetStore(None).load(DatasetName.DIGITS), Plain()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.005)
    for at in range(0, len(data.train_labels), 100):
        optimizer.zero_grad()
        logits = plain(scaled(data.train_images[at : at + 100]))
        nn.functional.cross_entropy(logits, data.train_labels[at : at + 100]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Trained(dict(plain.state_dict()), _accuracy(plain, data))


def _accuracy(plain: Plain, data: Dataset) -> float:
    plain.eval()
    with torch.no_grad():
        return float((plain(scaled(data.test_images)).argmax(1) == data.test_labels).double().mean())


def _imported(http: httpx.Client, content: bytes) -> Document:
    answer = http.post(
        "/v1/checkpoints",
        content=content,
        headers={"Content-Type": "application/octet-stream"},
        params={"display_name": "from elsewhere"},
    )
    assert answer.status_code == 202, answer.text
    return ended(http, answer.json()["id"])


@pytest.fixture(scope="module")
def imported(http: httpx.Client, network: Trained) -> Document:
    """As safetensors."""
    job = _imported(http, save(network.state))
    assert job["status"] == "succeeded", job["error"]
    return job


def _artifact(http: httpx.Client, job: Document, name: str) -> bytes:
    answer = http.get(f"{job['links']['artifacts']}/{name}")
    assert answer.status_code == 200, answer.text
    return answer.content


@pytest.fixture(scope="module")
def documented(
    service: Stack, http: httpx.Client, network: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Document:
    """What the code in the docs submits; it uploads what PyTorch saved, and waits for that."""
    text = (Path(__file__).parents[2] / "docs" / "pruning.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "upload_checkpoint" in block)
    code = code.replace("http://127.0.0.1:8000", service.url).replace("mnist", "digits").replace("10}", "1}")
    folder = tmp_path_factory.mktemp("documented")
    torch.save(network.state, folder / "network.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code, {"api_key": service.api_key})
    newest: Document = http.get("/v1/jobs").json()["items"][0]
    return newest


def test_both_formats_give_the_values_that_were_trained(
    http: httpx.Client, network: Trained, imported: Document, documented: Document
) -> None:
    other = read(http, documented["spec"]["source"]["job_id"])

    for job, format in ((imported, "safetensors"), (other, "torch")):
        assert (job["status"], job["result"]["format"]) == ("succeeded", format), job["error"]
        assert (job["result"]["channels"], job["result"]["hidden"]) == (list(CHANNELS), HIDDEN)
        state = load(_artifact(http, job, "model.safetensors"))
        assert state.keys() == network.state.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in network.state.items())
    names = {each["name"] for each in http.get(imported["links"]["artifacts"]).json()["items"]}
    assert names == {"model.safetensors", "model.pt", "manifest.json"}


def _prune(source: str, **overrides: Any) -> Document:
    """Of what the source came to."""
    return {**prune_spec(source, **overrides), "source": {"job_id": source}}


@pytest.fixture(scope="module")
def tuned(http: httpx.Client, imported: Document) -> Document:
    pruning, tuning = {"method": "magnitude", "sparsity": 0.5}, {"epochs": 1}
    return finished(http, _prune(imported["id"], dataset=FEW, pruning=pruning, fine_tuning=tuning))


def test_an_import_is_pruned_and_fine_tuned(network: Trained, imported: Document, tuned: Document) -> None:
    result = tuned["result"]

    assert result["accuracy_before"] == pytest.approx(network.accuracy, abs=1e-6)
    assert result["parameters"] == imported["result"]["parameters"]
    assert result["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_the_code_in_the_docs_uploads_and_prunes(http: httpx.Client, documented: Document) -> None:
    assert (documented["kind"], documented["spec"]["dataset"]["name"]) == ("prune", "digits")
    assert ended(http, documented["id"])["status"] == "succeeded"


def test_a_training_and_a_second_pruning_go_on_from_it(http: httpx.Client, imported: Document, tuned: Document) -> None:
    spec = train_spec(dataset=FEW, initial={"job_id": imported["id"]}, pruning=None)
    del spec["model"]
    job = finished(http, spec)
    assert job["spec"]["model"] == {"architecture": "cnn", "channels": list(CHANNELS), "hidden": HIDDEN}

    second = finished(http, _prune(tuned["id"]))
    assert second["spec"]["dataset"]["name"] == "digits"
    assert second["result"]["parameters"] == imported["result"]["parameters"]


def test_what_an_import_has_not_is_refused_at_submission(
    http: httpx.Client, trained: Document, imported: Document
) -> None:
    ref = {"job_id": imported["id"]}
    dense = {**ref, "artifact": "dense.safetensors"}
    refused: list[tuple[Document, str, str, str]] = [
        (_prune(imported["id"]), "/dataset", "missing", "has no data set: name one"),
        (prune_spec(imported["id"]), "/source/artifact", "source_has_no_such_artifact", "name model.safetensors"),
        (train_spec(initial=dense), "/initial/artifact", "source_has_no_such_artifact", "name model.safetensors"),
        (train_spec(initial=ref), "/model", "widths_differ", f"channels {list(CHANNELS)} and hidden {HIDDEN}"),
        (compare_spec(trained["id"], imported["id"]), "/jobs/1", "source_has_no_report", "has no report"),
    ]
    for spec, pointer, code, said in refused:
        answer = http.post("/v1/jobs", json=spec)

        assert answer.status_code == 422, answer.text
        (error,) = answer.json()["errors"]
        assert (error["pointer"], error["code"]) == (pointer, code)
        assert said in error["detail"]


def test_a_wrong_file_fails_with_the_same_complaint_in_either_format(http: httpx.Client, network: Trained) -> None:
    wrong = {**network.state, "fc2.bias": torch.zeros(11)}
    complaint = "fc2.bias has shape [11], expected [10], in a network of channels [4, 5, 6] and hidden 12"
    buffer = io.BytesIO()
    torch.save(wrong, buffer)

    headers = {"Content-Type": "application/octet-stream"}
    assert complaint in http.post("/v1/checkpoints", content=save(wrong), headers=headers).json()["detail"]
    job = _imported(http, buffer.getvalue())

    assert (job["status"], job["error"]["code"]) == ("failed", "invalid_checkpoint")
    assert complaint in job["error"]["message"]
    again = http.post(job["links"]["retry"])
    assert (again.status_code, again.json()["code"]) == (409, "upload_not_kept")
