import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, tzinfo
from typing import cast

import anyio
import pytest
from arq.constants import job_key_prefix

from app.core.arq_queue import ArqQueue
from app.core.job_runner import JobRunner
from app.core.jobs import JobRegistry
from app.core.outbox import Ticket
from app.core.redis import RedisClient, create_pool
from app.settings import Settings
from tests.fixtures.jobs import eventually

NAME = "tests:queue"
# Beyond 32 bits, as ids may be.
TICKET = Ticket(2**53 + 1, 0)


class Clerk:
    """Notes the tickets that it is given to run."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []

    async def run(self, ticket: Ticket) -> None:
        self.tickets.append(ticket)

    async def seen(self) -> list[Ticket]:
        return self.tickets


@pytest.fixture
async def queue(settings: Settings) -> AsyncIterator[ArqQueue]:
    queue = ArqQueue(settings, create_pool(settings), NAME)
    yield queue
    await queue.close()


@asynccontextmanager
async def serving(queue: ArqQueue, clerk: Clerk) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    serve = queue.serve(JobRegistry({}, ()), cast("JobRunner", clerk), stopping)
    task = asyncio.create_task(serve)
    try:
        yield
    finally:
        stopping.set()
        with anyio.fail_after(30):
            await task


async def test_a_ticket_is_queued_once_until_it_has_run(queue: ArqQueue) -> None:
    room = await queue.room()
    for _ in range(3):
        await queue.push(TICKET)
    assert await queue.room() == room - 1

    clerk = Clerk()
    async with serving(queue, clerk):
        await eventually(clerk.seen, lambda found: found == [TICKET])
        await eventually(queue.room, lambda found: found == room)
        # A try that was given back has the same number.
        await queue.push(TICKET)
        await eventually(clerk.seen, lambda found: found == [TICKET] * 2)


async def test_a_ticket_that_expired_in_a_long_queue_can_be_sent_again(
    queue: ArqQueue, redis_client: RedisClient
) -> None:
    await queue.push(TICKET)
    keys = await redis_client.raw.keys(f"{NAME}:{job_key_prefix}*")
    assert len(keys) == 1
    # What its time to live does after some minutes.
    await redis_client.raw.delete(*keys)
    room = await queue.room()
    clerk = Clerk()
    async with serving(queue, clerk):
        await eventually(queue.room, lambda found: found == room + 1)
        assert clerk.tickets == []
        await queue.push(TICKET)
        await eventually(clerk.seen, lambda found: found == [TICKET])


async def test_nothing_is_kept_in_redis_when_all_is_done(
    queue: ArqQueue, redis_client: RedisClient
) -> None:
    clerk = Clerk()
    for number in range(5):
        await queue.push(Ticket(number, 0))
    async with serving(queue, clerk):
        await eventually(clerk.seen, lambda found: len(found) == 5)

    # The generation is of what is cached.
    kept = {redis_client.generation_key.encode()}
    assert set(await redis_client.raw.keys("*")) <= kept


async def test_a_ticket_is_used_at_once_whatever_the_clock_of_its_relay(
    queue: ArqQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Ahead":
            return cls.fromtimestamp(datetime.now(tz).timestamp() + 300, tz)

    with monkeypatch.context() as patch:
        patch.setattr("app.core.arq_queue.datetime", Ahead, raising=False)
        patch.setattr("arq.connections.timestamp_ms", lambda: round(time.time() * 1000) + 300_000)
        await queue.push(TICKET)
    clerk = Clerk()
    async with serving(queue, clerk):
        await eventually(clerk.seen, lambda found: found == [TICKET], 20)
