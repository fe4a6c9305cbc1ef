"""Which server the command line talks to, and with which key."""

from __future__ import annotations

import os
from pathlib import Path

from secateur_client import Client

DEFAULT_URL = "http://127.0.0.1:8000"


def connect(state_dir: Path) -> Client:
    return Client(os.environ.get("SECATEUR_URL") or DEFAULT_URL, api_key(state_dir))


def api_key(state_dir: Path) -> str | None:
    """SECATEUR_API_KEY, else what the embedded stack left in its state folder, else none: the server may need none."""
    if key := os.environ.get("SECATEUR_API_KEY", "").strip():
        return key
    file = state_dir / "api-key"
    return file.read_text(encoding="utf-8").strip() or None if file.is_file() else None
