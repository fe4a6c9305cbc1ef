"""The published description and the service hold to each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app.local import Stack

# No description can say which cursors a list has given, which jobs there are to build on, what a state dict or a data
# set is, which key is new, which copy of a job is the present one, that no label is given twice, which hosts may be
# told of jobs, and how many of them there are already.
# A stream of a job that waits has no end, and no test of a description should wait for a change.
CONFIG = """\
[[operations]]
include-name = "GET /v1/jobs/{job_id}/events/stream"
enabled = false
[[operations]]
include-name = "GET /v1/jobs/{job_id}"
parameters = { "query.wait" = 0 }
[[operations]]
include-name = "GET /v1/jobs"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 422]
[[operations]]
include-name = "PATCH /v1/jobs/{job_id}"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 410, 412]
[[operations]]
include-name = "POST /v1/jobs/{job_id}/rerun"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 410, 422]
[[operations]]
include-name = "POST /v1/jobs"
checks.positive_data_acceptance.expected-statuses = ["2xx", 422]
[[operations]]
include-name = "POST /v1/checkpoints"
checks.positive_data_acceptance.expected-statuses = ["2xx", 422]
[[operations]]
include-name = "POST /v1/datasets"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 422]
[[operations]]
include-name = "GET /v1/datasets"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 422]
[[operations]]
include-name = "POST /v1/webhooks"
checks.positive_data_acceptance.expected-statuses = ["2xx", 409, 422]
[[operations]]
include-name = "PATCH /v1/webhooks/{webhook_id}"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 422]
[[operations]]
include-name = "GET /v1/webhooks/{webhook_id}/deliveries"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404]
"""


@pytest.mark.parametrize(
    "phases",
    [
        "examples,fuzzing",
        pytest.param("coverage", marks=[pytest.mark.acceptance, pytest.mark.timeout(450)], id="thousands of cases"),
    ],
)
def test_whatever_the_description_allows_gets_an_answer_that_it_describes(
    idle_service: Stack, tmp_path: Path, phases: str
) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{idle_service.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {idle_service.api_key}"),
        *("--phases", phases, "--max-examples", "20", "--seed", "1"),
        *("--no-color", "--generation-database", "none", "--warnings", "off"),
    ]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)

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
    assert set(spec["discriminator"]["mapping"]) == {"train", "prune", "compare"}


def test_what_webhooks_are_sent_is_described(idle_http: httpx.Client) -> None:
    document = idle_http.get("/openapi.json").json()

    assert set(document["webhooks"]) == {"job.started", "job.succeeded", "job.failed", "job.cancelled", "webhook.test"}
    for told in document["webhooks"].values():
        names = {parameter["name"] for parameter in told["post"]["parameters"]}
        assert names == {"webhook-id", "webhook-timestamp", "webhook-signature"}
        model = told["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert set(document["components"]["schemas"][model]["required"]) == {"type", "timestamp", "data"}
        assert list(told["post"]["responses"]) == ["2XX", "410"]


def test_the_reference_page_is_there(idle_http: httpx.Client) -> None:
    answer = idle_http.get("/docs")

    assert answer.headers["Content-Type"].startswith("text/html")
    assert "/openapi.json" in answer.text
