"""The client that measures must not measure less than it says."""

from __future__ import annotations

import json

import pytest

from app.local import Stack
from benchmarks.bench.load import Request, seconds_for
from tests.specs import train_spec


def _counted(idle_service: Stack, requests: list[Request], status: int) -> float:
    return seconds_for(idle_service.url, idle_service.api_key, requests, connections=3, status=status)


def test_every_request_is_answered(idle_service: Stack) -> None:
    requests = [Request("GET", "/v1/jobs?limit=1")] * 7
    assert _counted(idle_service, requests, 200) > 0
    body = json.dumps(train_spec()).encode()
    assert _counted(idle_service, [Request("POST", "/v1/jobs?validate_only=true", body)], 200) > 0


def test_another_answer_than_expected_is_no_measurement(idle_service: Stack) -> None:
    with pytest.raises(RuntimeError, match="answered 404"):
        _counted(idle_service, [Request("GET", "/v1/jobs/none")], 200)
