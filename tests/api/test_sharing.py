"""One answer for all who ask the same at the same time, and none that is older than their question."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from app.api.sharing import Shared


class Clock:
    """A question whose answer is how often it was asked before; it looks at once and tells when it is let."""

    def __init__(self) -> None:
        self.asked, self.looked, self.may_tell = 0, threading.Event(), threading.Event()

    def __call__(self) -> int:
        answer, self.asked = self.asked, self.asked + 1
        self.looked.set()
        assert self.may_tell.wait(timeout=30)
        return answer

    async def has_looked(self) -> None:
        assert await asyncio.to_thread(self.looked.wait, 30)


def test_those_who_come_while_a_question_is_out_share_the_next_one() -> None:
    async def run() -> None:
        shared, clock = Shared(), Clock()
        first = asyncio.create_task(shared.ask("job", clock))
        await clock.has_looked()
        later = [asyncio.create_task(shared.ask("job", clock)) for _ in range(1_000)]
        other = asyncio.create_task(shared.ask("another job", lambda: "not asked with it"))
        assert await other == "not asked with it"
        clock.may_tell.set()
        assert await first == 0
        assert set(await asyncio.gather(*later)) == {1}
        assert await shared.ask("job", clock) == 2

    asyncio.run(run())


def test_all_hear_of_an_error_and_the_next_question_is_a_new_one() -> None:
    answers: list[Callable[[], int]] = [lambda: int("seven"), lambda: 7]

    async def run() -> None:
        shared = Shared()
        failed = await asyncio.gather(
            *(shared.ask("job", lambda: answers[0]()) for _ in range(3)), return_exceptions=True
        )
        assert [type(error) for error in failed] == [ValueError] * 3
        assert await shared.ask("job", answers[1]) == 7

    asyncio.run(run())


def test_who_leaves_takes_nobody_along() -> None:
    async def run() -> None:
        shared, clock = Shared(), Clock()
        leaving, staying = (asyncio.create_task(shared.ask("job", clock)) for _ in range(2))
        await clock.has_looked()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        clock.may_tell.set()
        assert await staying == 0
        assert clock.asked == 1

    asyncio.run(run())
