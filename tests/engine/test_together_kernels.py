"""The kernels' arithmetic, by Triton's interpreter, which needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.engine.layers import Case

CASES = {
    "few channels": Case(2, 1, 3, 2, 8, 9, 5, False),
    "few channels, pooled, odd sides": Case(1, 3, 4, 2, 9, 7, 3, True),
    "many channels, pooled": Case(2, 9, 4, 1, 6, 6, 3, True),
    "more than a block of channels, odd sides": Case(1, 17, 33, 1, 4, 5, 3, True),
}


@pytest.fixture(scope="module")
def apart() -> dict[str, dict[str, float]]:
    """Of each case how far the kernels are from PyTorch. In a process of its own: the interpreter is chosen when the
    kernels are first read."""
    pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA alone")
    command = [sys.executable, "-m", "tests.engine.layers", json.dumps(list(CASES.values()))]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_layers_and_their_gradients_are_pytorchs(case: str, apart: dict[str, dict[str, float]]) -> None:
    for name, found in apart[case].items():
        assert found < 1e-5, name
