from __future__ import annotations

import json
from typing import Any

import pytest

from app.api.describe import description


@pytest.fixture(scope="session")
def described() -> str:
    """The description as `make openapi` writes it."""
    return description()


@pytest.fixture(scope="session")
def document(described: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(described)
    return loaded
