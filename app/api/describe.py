"""Writes the API's description to a file, without a server: `python -m app.api.describe docs/openapi.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from app.api.main import create_app
from app.core.settings import Settings


def description() -> str:
    """As JSON whose order means nothing, so that a change is a change of lines."""
    nowhere = Settings.model_validate(
        {"database_url": "postgresql://nobody@localhost/none", "redis_url": "redis://localhost"}
    )
    return json.dumps(create_app(nowhere).openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(description(), encoding="utf-8")
