"""HTTP clients for the tests."""

from __future__ import annotations

import httpx


def client_of(url: str, key: str) -> httpx.Client:
    """Speaks to a server of ours with this key."""
    headers = {"Authorization": f"Bearer {key}"}
    # No TLS, so no certificates: to read them takes longer than most tests' requests.
    return httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False, verify=False)
