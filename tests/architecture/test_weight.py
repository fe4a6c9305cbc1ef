"""The light side stays light: measured in fresh interpreters, because this one has long imported torch."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import app

HEAVY = ("torch", "torchvision", "matplotlib", "worker")
ROUNDS = 8
LARGEST_SHARE = 1 / 3

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
import json, resource, sys, time
for name in json.loads(sys.argv[1]):
    __import__(name)
# Processor time, the interpreter's start included: unlike the clock's, it does not count what others do meanwhile.
print(json.dumps([time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""

# A process starts with the peak of whoever started it, and pytest's is large: a small one stands in between.
BETWEEN = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', *sys.argv[1:]]))"


class Cost(NamedTuple):
    seconds: float
    memory: float


def _run(root: Path, code: str, *arguments: object) -> Any:
    command = [sys.executable, "-c", BETWEEN, code, *(json.dumps(argument) for argument in arguments)]
    # Compiled once, as whatever is started a second time: a shell may have asked for no bytecode.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _cost(root: Path, *modules: str) -> Cost:
    return Cost(*_run(root, MEASURE, modules))


def _least(first: Cost, second: Cost) -> Cost:
    return Cost(min(first.seconds, second.seconds), min(first.memory, second.memory))


def test_no_module_of_the_app_brings_anything_heavy(root: Path) -> None:
    names = ["app", *(module.name for module in pkgutil.walk_packages(app.__path__, "app."))]
    assert {"app.api.main", "app.cli.jobs", "app.demo", "app.local.stack"} <= set(names)
    assert _run(root, IMPORT_EACH, names, HEAVY) == {}


@pytest.mark.alone
def test_the_api_costs_at_most_a_third_of_itself_with_torch(root: Path) -> None:
    light, heavy = _cost(root, "app.api.main"), _cost(root, "app.api.main", "torch")
    for _ in range(ROUNDS):  # the best of several; a busy machine takes more of them to show it
        if light.seconds <= LARGEST_SHARE * heavy.seconds:
            break
        light = _least(light, _cost(root, "app.api.main"))
        heavy = _least(heavy, _cost(root, "app.api.main", "torch"))
    assert light.seconds <= LARGEST_SHARE * heavy.seconds, (light, heavy)
    assert light.memory <= LARGEST_SHARE * heavy.memory, (light, heavy)
