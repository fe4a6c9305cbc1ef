"""The loop that sends what is due. Each API process runs one; any number may run at once, and any be killed anywhere.

A delivery is leased in one transaction and settled in another, with none open while it is sent: whoever is killed in
between loses nothing, since the lease runs out, and the endpoint may be told twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session, sessionmaker

from app.contract.webhooks import TEST
from app.db import webhooks
from app.db.session import AWAY
from app.db.webhooks import Claim
from app.delivery.outcome import Outcome

# It brings an HTTP client, which a process without webhooks can do without.
if TYPE_CHECKING:
    from app.delivery.sender import Sender

logger = logging.getLogger(__name__)

RETRY_SECONDS = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""After the first, second … failure, as Standard Webhooks recommends: ten attempts in three days."""

JITTER = 0.2
"""At most so much longer, so that what failed together is not tried again together."""

MOST_RETRY_AFTER_SECONDS = 86_400
"""An endpoint may ask for no more."""

MOST = 200
"""Attempts under way at once, in this process. They hold a coroutine and a connection each, no thread."""

MOST_A_WEBHOOK = 4
"""Of these, to one webhook: one that does not answer takes so many places, and leaves the others theirs."""

POLL_SECONDS = 0.5
AWAY_SECONDS = 5.0
STOP_SECONDS = 3.0


class Deliverer:
    """Sends what is due, from `start` to `stop`, with what `make_sender` makes when there is something to send."""

    def __init__(self, sessions: sessionmaker[Session], make_sender: Callable[[], Sender]) -> None:
        self._sessions, self._make_sender = sessions, make_sender
        self._busy: Counter[str] = Counter()
        self._under_way: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @cached_property
    def _sender(self) -> Sender:
        return self._make_sender()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="webhooks")

    async def stop(self) -> None:
        """Claim no more, and give what is under way a moment; what is cut off then is sent again by another."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            claims = await self._claim()
            for claim in claims or ():
                self._begin(claim)
            if not claims:
                await self._rest(AWAY_SECONDS if claims is None else POLL_SECONDS)

    async def _claim(self) -> Sequence[Claim] | None:
        """None when that was not possible."""
        room = MOST - len(self._under_way)
        full = [webhook_id for webhook_id, count in self._busy.items() if count >= MOST_A_WEBHOOK]
        try:
            return await asyncio.to_thread(self._claim_now, room, full) if room else []
        except AWAY as error:
            logger.warning("no deliveries, will try again", extra={"error": str(error)})
        except Exception:  # a loop that died unseen would leave every delivery where it is
            logger.exception("no deliveries, will try again")
        return None

    def _claim_now(self, room: int, full: Sequence[str]) -> Sequence[Claim]:
        with self._sessions.begin() as session:
            return webhooks.claim(session, room=room, full=full)

    async def _rest(self, seconds: float) -> None:
        """Until something may be due, a place is free, or it is time to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _begin(self, claim: Claim) -> None:
        self._busy[claim.webhook_id] += 1
        task = asyncio.create_task(self._deliver(claim), name=claim.delivery_id)
        self._under_way.add(task)
        task.add_done_callback(lambda task: self._end(task, claim))

    def _end(self, task: asyncio.Task[None], claim: Claim) -> None:
        self._under_way.discard(task)
        self._busy[claim.webhook_id] -= 1
        if not self._busy[claim.webhook_id]:
            del self._busy[claim.webhook_id]
        self._wake.set()

    async def _deliver(self, claim: Claim) -> None:
        told = {"webhook_id": claim.webhook_id, "delivery_id": claim.delivery_id}
        outcome = await self._outcome(claim, told)
        if outcome.error:
            logger.info("delivery failed", extra=told | {"error": outcome.error, "failures": claim.failures + 1})
        try:
            await asyncio.to_thread(self._settle, claim, outcome)
        except AWAY as error:
            # It may have got through; when its lease runs out, it is sent again.
            logger.warning("delivery not settled", extra=told | {"error": str(error)})
        except Exception:
            logger.exception("delivery not settled", extra=told)

    async def _outcome(self, claim: Claim, told: dict[str, str]) -> Outcome:
        try:
            return await self._sender.send(claim)
        except Exception:  # counted as any failure, or it would be tried for ever
            logger.exception("delivery could not be sent", extra=told)
            return Outcome(None, "it could not be sent")

    def _settle(self, claim: Claim, outcome: Outcome) -> None:
        with self._sessions.begin() as session:
            settle(session, claim, outcome)


def settle(session: Session, claim: Claim, outcome: Outcome) -> None:
    """Write down what became of an attempt, and when it is to be made again."""
    status = outcome.response_status
    if outcome.error is None:
        webhooks.succeed(session, claim, response_status=status)
    else:
        gone = status == 410
        again = None if gone else again_seconds(claim, outcome)
        webhooks.fail(session, claim, error=outcome.error, response_status=status, again_seconds=again, gone=gone)


def again_seconds(claim: Claim, outcome: Outcome) -> float | None:
    """From a failure to the next attempt; None when that was the last. A test is not repeated: its client waits."""
    if claim.event == TEST or claim.failures >= len(RETRY_SECONDS):
        return None
    asked_for = min(outcome.retry_after_seconds, MOST_RETRY_AFTER_SECONDS)
    return max(RETRY_SECONDS[claim.failures], asked_for) * random.uniform(1, 1 + JITTER)  # noqa: S311 - no secret
