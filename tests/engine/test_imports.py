from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import importlib, json, pkgutil, sys
import worker.engine
for module in pkgutil.walk_packages(worker.engine.__path__, "worker.engine."):
    importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""

FOREIGN = {"fastapi", "starlette", "uvicorn", "celery", "kombu", "redis", "sqlalchemy", "psycopg", "pydantic_settings"}


def test_the_engine_comes_without_web_queue_and_database() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    modules = set(json.loads(done.stdout))
    assert {"worker.engine.pipeline", "worker.engine.drawing", "worker.engine.pruning.threshold"} <= modules
    assert not {name.partition(".")[0] for name in modules} & FOREIGN
    ours = {".".join(name.split(".")[:2]) for name in modules if name.startswith(("app.", "worker."))}
    assert ours == {"app.contract", "worker.engine"}
    assert "matplotlib.pyplot" not in modules  # it keeps every figure, and wants a display
