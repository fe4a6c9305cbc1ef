"""A bug of ours, as a client sees it."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from app.api.main import create_app
from app.core.settings import Settings


@pytest.fixture
def buggy() -> FastAPI:
    """An application with a route that fails as nobody foresaw; it opens no database."""
    app = create_app(Settings(database_url="postgresql://nowhere/x", redis_url="redis://127.0.0.1:1/0"))

    @app.get("/buggy")
    def fail() -> None:
        raise KeyError("a secret")

    return app


async def _get(app: FastAPI, path: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(path, headers=headers)


def test_a_bug_is_a_problem_without_its_inside_and_with_its_request_id(buggy: FastAPI) -> None:
    answer = asyncio.run(_get(buggy, "/buggy", **{"X-Request-Id": "mine"}))

    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.headers["X-Request-Id"] == answer.json()["request_id"] == "mine"
    assert "secret" not in answer.text
