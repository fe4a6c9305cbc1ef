"""The light side stays light: measured in fresh interpreters, because this one has long imported torch."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import app
from tests.specs import Document

HEAVY = ("torch", "torchvision", "matplotlib", "worker")
UNUSED = ("torch._dynamo", "torch._inductor", "sympy", "triton", "torchvision", "sklearn", "scipy")
"""By a worker: PyTorch's compiler and what it brings, and the libraries of which it reads no more than a file."""
LATE = ("celery", "kombu", "redis", "limits", "httpx", "httpcore", "prometheus_client")
"""By an API that starts: what asks a broker, calls a webhook or answers a scrape, a third of a second altogether."""
LARGEST_SHARE = 1 / 6

IMPORT_EACH = """
import importlib, json, sys
culprits = {}
for name in json.loads(sys.argv[1]):
    before = set(sys.modules)
    importlib.import_module(name)
    found = [heavy for heavy in json.loads(sys.argv[2]) if heavy in sys.modules and heavy not in before]
    if found:
        culprits[name] = found
print(json.dumps(culprits))
"""

MEASURE = """
import json, resource, sys
def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import app.api.main
light = memory()
import torch
heavy = memory()
from worker.engine import pipeline
from worker.engine.data import DatasetStore
pipeline.warm_up()
DatasetStore(None).load("digits")
unused = [name for name in json.loads(sys.argv[1]) if name in sys.modules]
print(json.dumps({"light": light, "heavy": heavy, "unused": unused}))
"""

ANSWER = """
import asyncio, json, sys
from app.api.main import create_app
from app.core.settings import Settings
status = []
async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}
async def send(message):
    status.append(message.get("status"))
scope = {"type": "http", "method": "GET", "path": "/livez", "query_string": b"", "headers": [], "asgi": {}}
settings = Settings(database_url="postgresql://127.0.0.1:1/x", redis_url="redis://127.0.0.1:1/0")
asyncio.run(create_app(settings)(scope, receive, send))
print(json.dumps({"status": status[0], "late": [name for name in json.loads(sys.argv[1]) if name in sys.modules]}))
"""

# A process starts with the peak of whoever started it, and pytest's is large: a small one stands in between.
BETWEEN = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', *sys.argv[1:]]))"


def _run(root: Path, code: str, *arguments: object) -> Any:
    command = [sys.executable, "-c", BETWEEN, code, *(json.dumps(argument) for argument in arguments)]
    # Compiled once, as whatever is started a second time: a shell may have asked for no bytecode.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_module_of_the_app_brings_anything_heavy(root: Path) -> None:
    names = ["app", *(module.name for module in pkgutil.walk_packages(app.__path__, "app."))]
    assert {"app.api.main", "app.cli.jobs", "app.demo", "app.local.stack"} <= set(names)
    assert _run(root, IMPORT_EACH, names, HEAVY) == {}


@pytest.fixture(scope="module")
def measured(root: Path) -> Document:
    """Of a process that becomes an API, then imports PyTorch, and then does what a worker does."""
    found: Document = _run(root, MEASURE, UNUSED)
    return found


def test_the_api_takes_at_most_a_sixth_of_the_memory_that_it_takes_with_torch(measured: Document) -> None:
    """What its start takes of time, `make bench` tells: a processor's seconds are no matter of right or wrong."""
    assert measured["light"] <= LARGEST_SHARE * measured["heavy"]


def test_a_worker_brings_nothing_that_it_does_not_use(measured: Document) -> None:
    """A quarter of a gigabyte in each, and half of its start."""
    assert measured["unused"] == []


def test_the_first_answer_waits_for_nothing_that_it_does_not_need(root: Path) -> None:
    assert _run(root, ANSWER, LATE) == {"status": 200, "late": []}
