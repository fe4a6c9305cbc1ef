"""The published description and the service hold to each other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import httpx
import pytest

from app.local import Stack
from tests.fuzz import command


@pytest.mark.parametrize(
    "phases",
    [
        "examples,fuzzing,stateful",
        pytest.param("coverage", marks=[pytest.mark.acceptance, pytest.mark.timeout(450)], id="thousands of cases"),
    ],
)
def test_whatever_the_description_allows_gets_an_answer_that_it_describes(
    idle_service: Stack, tmp_path: Path, phases: str
) -> None:
    run = command(idle_service, tmp_path, phases=phases, examples=10, seed=1)
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)

    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr
    assert "Tested:" in done.stdout


def test_errors_are_described_as_problems_and_not_as_fastapis_own(idle_http: httpx.Client) -> None:
    document = idle_http.get("/openapi.json").json()

    assert not {"HTTPValidationError", "ValidationError"} & set(document["components"]["schemas"])
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and path.startswith("/v1"):
                    assert list(answer["content"]) == ["application/problem+json"], (method, path, status)


def test_a_spec_is_described_by_its_kind(idle_http: httpx.Client) -> None:
    spec = idle_http.get("/openapi.json").json()["components"]["schemas"]["Spec"]

    assert spec["discriminator"]["propertyName"] == "kind"
    assert set(spec["discriminator"]["mapping"]) == {"train", "prune", "compare", "sweep"}


def test_what_webhooks_are_sent_is_described(idle_http: httpx.Client) -> None:
    document = idle_http.get("/openapi.json").json()

    assert set(document["webhooks"]) == {"job.started", "job.succeeded", "job.failed", "job.cancelled", "webhook.test"}
    for told in document["webhooks"].values():
        names = {parameter["name"] for parameter in told["post"]["parameters"]}
        assert names == {"webhook-id", "webhook-timestamp", "webhook-signature"}
        model = told["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert set(document["components"]["schemas"][model]["required"]) == {"type", "timestamp", "data"}
        assert list(told["post"]["responses"]) == ["2XX", "410"]


def test_the_reference_page_is_there_and_all_that_it_loads(idle_service: Stack, idle_http: httpx.Client) -> None:
    """From this service, by a browser that has no key and perhaps no internet."""
    answer = idle_http.get("/docs")

    assert answer.headers["Content-Type"].startswith("text/html")
    assert "/openapi.json" in answer.text
    loaded = re.findall(r'(?:src|href)="([^"]*)"', answer.text)
    assert {path.rpartition(".")[2] for path in loaded} == {"js", "css", "png"}
    for path in loaded:
        assert path.startswith("/docs/")
        assert httpx.get(idle_service.url + path, trust_env=False, verify=False).status_code == 200
