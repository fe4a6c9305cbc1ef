"""Equal questions that come at the same time are asked once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from contextvars import Context
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

T = TypeVar("T")


class Shared:
    """Answers of the database, for all who wait for the same one: a thousand clients that ask about one job at once
    cost it a few questions.

    Each answer is as fresh as its own question would have been: whoever comes while a question is out does not share
    that one, which may have looked before, but the next one.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, asyncio.Task[Any]] = {}
        self._out: dict[Hashable, asyncio.Task[Any]] = {}

    async def ask(self, key: Hashable, question: Callable[[], T]) -> T:
        """What `question`, which runs on a thread, returns or raises for all who ask for this key. It must not depend
        on who asks."""
        task = self._waiting.get(key)
        if task is None:
            # In no request's context: it is not the business of one alone.
            task = asyncio.get_running_loop().create_task(self._ask(key, question), context=Context())
            task.add_done_callback(_heard)
            self._waiting[key] = task
        answer: T = await asyncio.shield(task)  # who leaves takes nobody along
        return answer

    async def _ask(self, key: Hashable, question: Callable[[], T]) -> T:
        if key in self._out:
            await asyncio.wait([self._out[key]])
        task = self._out[key] = self._waiting.pop(key)
        try:
            return await run_in_threadpool(question)
        finally:
            if self._out[key] is task:
                del self._out[key]


def _heard(task: asyncio.Task[Any]) -> None:
    """When all who asked have left, nobody is there to be told of its error."""
    if not task.cancelled():
        task.exception()
