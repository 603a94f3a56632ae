"""The relay: hands what is due in the outbox to the queue, in every worker at once."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from datetime import timedelta
from typing import Protocol

import anyio
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import outbox
from app.core.database import Database
from app.core.job_rollout import may_be_taken, refuse_unknown
from app.core.jobs import JobSettings
from app.core.outbox import JobsEnqueued, Ticket
from app.core.redis import REDIS_ERRORS, RedisClient, RedisSettings, create_pool

_BATCH = 100
_CHANNEL = "jobs-enqueued"
_POLL_SECONDS = 0.5
_REFUSE_SECONDS = 0.5
_PAUSE_AFTER_ERROR_SECONDS = 1.0

logger = structlog.get_logger(__name__)


class Queue(Protocol):
    """What spreads tickets over the workers; the engine behind it may lose everything."""

    async def room(self) -> int:
        """How many more tickets it should be given now, so that it stays short."""
        ...

    async def push(self, ticket: Ticket) -> None:
        """Add a ticket; does nothing when it is queued already."""
        ...


class Relay:
    """Moves due jobs to the queue, at least once.

    A ticket that is not used within the lease is sent again: it was lost with the queue or with a
    worker, or it waits still and the queue knows it.

    Args:
        database: Where the outbox is.
        queue: Where due jobs go.
        settings: How long a ticket has, and how long a job of another release.
        names: The jobs that the workers behind the queue know; all by default.
    """

    def __init__(
        self,
        database: Database,
        queue: Queue,
        settings: JobSettings,
        names: Collection[str] | None = None,
    ) -> None:
        self._database = database
        self._queue = queue
        self._names = names
        self._rollout = timedelta(seconds=settings.JOB_ROLLOUT_SECONDS)
        self._refused_at = 0.0
        self._lease = timedelta(seconds=settings.JOB_LEASE_SECONDS)
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look at the outbox now instead of at the next poll."""
        self._woken.set()

    async def run(self) -> None:
        """Relay until cancelled; survives outages of the database and of the queue."""
        while True:
            self._woken.clear()
            try:
                if await self.relay_batch() == _BATCH:
                    continue
            except Exception as error:  # noqa: BLE001
                logger.warning("relay_failed", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(_PAUSE_AFTER_ERROR_SECONDS)
            with anyio.move_on_after(_POLL_SECONDS):
                await self._woken.wait()

    async def relay_batch(self) -> int:
        """Send what is due, up to a batch; returns how many tickets."""
        async with self._database.read_only() as session:
            if not await outbox.is_due(session):
                return 0
        # Also proves that the queue answers, before the rows are marked as sent.
        limit = min(_BATCH, await self._queue.room())
        if limit <= 0:
            return 0
        await self._refuse_unknown()
        only = None if self._names is None else may_be_taken(self._names, self._rollout)
        async with self._database.transaction() as session:
            tickets = await outbox.take_due(session, limit, self._lease, only)
        # After the commit: no row is locked while the queue takes its time.
        for ticket in tickets:
            await self._queue.push(ticket)
        return len(tickets)

    async def _refuse_unknown(self) -> None:
        now = time.monotonic()
        if self._names is None or now - self._refused_at < _REFUSE_SECONDS:
            return
        self._refused_at = now
        async with self._database.transaction() as session:
            await refuse_unknown(session, self._names, self._rollout)


def wake_relays(redis: RedisClient) -> Callable[[JobsEnqueued, AsyncSession], Awaitable[None]]:
    """The event handler that tells the relays of new jobs, in every process that makes some."""
    channel = redis.key(_CHANNEL)

    async def wake(_: JobsEnqueued, __: AsyncSession) -> None:
        # Without Redis they see it at their next poll.
        with suppress(*REDIS_ERRORS):
            await redis.call(lambda client: client.publish(channel, b""))

    return wake


async def listen(redis: RedisClient, settings: RedisSettings, hear: Callable[[], None]) -> None:
    """Call `hear` for each commit of new jobs until cancelled; reconnects by itself."""
    # Silence is no error here, so this connection has no timeout.
    client = Redis.from_pool(create_pool(settings, max_connections=1, socket_timeout=None))
    try:
        while True:
            with suppress(RedisError, OSError):
                async with client.pubsub() as pubsub:
                    await pubsub.subscribe(redis.key(_CHANNEL))
                    async for _ in pubsub.listen():
                        hear()
            await asyncio.sleep(_PAUSE_AFTER_ERROR_SECONDS)
    finally:
        await client.aclose()
