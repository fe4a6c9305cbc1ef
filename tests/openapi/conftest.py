from __future__ import annotations

import json
from typing import Any

import pytest

from app.api.describe import description


@pytest.fixture(scope="session")
def document() -> dict[str, Any]:
    """The description that the service gives."""
    described: dict[str, Any] = json.loads(description())
    return described
