"""A client that a public generator makes of the description works as it comes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import httpx

from app.local import Stack
from tests.specs import train_spec

PROGRAM = """
import hashlib, json, sys, time

from generated import AuthenticatedClient
from generated.api.artifacts import download_artifact, list_artifacts
from generated.api.jobs import get_job, submit_job
from generated.models import Job, TrainSpec

url, key, spec = sys.argv[1:]
with AuthenticatedClient(url, key, raise_on_unexpected_status=True) as client:
    job = submit_job.sync(client=client, body=TrainSpec.from_dict(json.loads(spec)), idempotency_key="generated")
    while not job.done:
        job = get_job.sync(job.id, client=client, wait=30)
        assert isinstance(job, Job), job
    assert job.result.nonzero_after <= job.result.nonzero_before, job
    files = {}
    for artifact in list_artifacts.sync(job.id, client=client).items:
        file = download_artifact.sync(job.id, artifact.name, client=client)
        files[artifact.name] = hashlib.sha256(file.payload.getvalue()).hexdigest()
print(json.dumps({"job": job.id, "files": files}))
"""


def _run(*command: str, **variables: str) -> str:
    environment = os.environ | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_generated_client_submits_waits_and_downloads(service: Stack, http: httpx.Client, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"post_hooks": []}))  # they only format
    package = tmp_path / "generated"
    options = ["--url", f"{service.url}/openapi.json", "--config", str(config), "--meta", "none"]
    generator = [sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning"]
    _run(*generator, *options, "--output-path", str(package))

    spec = json.dumps(train_spec(regularization={"penalty": "l1"}))
    said = _run(sys.executable, "-c", PROGRAM, service.url, service.api_key, spec, PYTHONPATH=str(tmp_path))

    answer = json.loads(said)
    listed = http.get(f"/v1/jobs/{answer['job']}/artifacts").json()["items"]
    assert {artifact["name"]: artifact["sha256"] for artifact in listed} == answer["files"] != {}
    assert sha256(http.get(listed[0]["href"]).content).hexdigest() == answer["files"][listed[0]["name"]]
