"""The relay between a real outbox and a queue that notes what it is given."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import update

from app.core import job_rollout, outbox, relay
from app.core.database import Database
from app.core.outbox import JobsEnqueued, OutboxJob, Ticket
from app.core.redis import RedisClient, open_redis
from app.core.relay import Relay, listen, wake_relays
from app.settings import Settings
from devtools.valkey import ValkeyServer
from tests.fixtures.jobs import Jobs, eventually
from tests.jobs.definitions import Note, note, of_the_next_release


@dataclass
class Notepad:
    """A queue that loses everything: it only notes the tickets."""

    space: int = 1000
    breaks_after: int | None = None
    tickets: list[Ticket] = field(default_factory=list)

    async def room(self) -> int:
        return self.space

    async def push(self, ticket: Ticket) -> None:
        # As with a real one, others have their turn meanwhile.
        await asyncio.sleep(0)
        if len(self.tickets) == self.breaks_after:
            self.breaks_after = None
            raise RedisConnectionError
        self.tickets.append(ticket)


def with_lease(settings: Settings, seconds: float) -> Settings:
    return settings.model_copy(update={"JOB_LEASE_SECONDS": seconds})


async def enqueue(jobs: Jobs, folder: Path, count: int, ordering_key: str | None = None) -> None:
    async with jobs.database.transaction() as session:
        for _ in range(count):
            await note.enqueue(session, Note(file=folder / "notes"), ordering_key=ordering_key)


@asynccontextmanager
async def running(work: Relay) -> AsyncIterator[None]:
    task = asyncio.create_task(work.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_backlog_is_handed_over_in_batches_oldest_first(
    jobs: Jobs, database: Database, settings: Settings, tmp_path: Path
) -> None:
    await enqueue(jobs, tmp_path, 150)
    queue = Notepad()
    work = Relay(database, queue, with_lease(settings, 600))

    assert [await work.relay_batch() for _ in range(3)] == [100, 50, 0]
    assert queue.tickets == [Ticket(row.id, 0) for row in await jobs.rows()]


async def test_a_queue_that_is_full_gets_only_what_it_has_room_for(
    jobs: Jobs, database: Database, settings: Settings, tmp_path: Path
) -> None:
    await enqueue(jobs, tmp_path, 5)
    queue = Notepad(space=3)
    work = Relay(database, queue, with_lease(settings, 600))
    assert await work.relay_batch() == 3

    for space, sent in ((0, 0), (-7, 0), (9, 2)):
        queue.space = space
        assert await work.relay_batch() == sent


async def test_two_relays_at_once_send_each_ticket_once_within_the_lease(
    jobs: Jobs, database: Database, settings: Settings, tmp_path: Path
) -> None:
    await enqueue(jobs, tmp_path, 250)
    queue = Notepad()
    relays = [Relay(database, queue, with_lease(settings, 600)) for _ in range(2)]

    async def drain(work: Relay) -> None:
        while len(queue.tickets) <= 250 and await work.relay_batch():
            pass

    async with anyio.create_task_group() as tasks:
        for work in relays:
            tasks.start_soon(drain, work)

    assert sorted(ticket.id for ticket in queue.tickets) == [row.id for row in await jobs.rows()]


async def test_a_ticket_that_is_lost_is_sent_again_after_the_lease_and_a_new_job_before_it(
    jobs: Jobs, database: Database, settings: Settings, tmp_path: Path
) -> None:
    await enqueue(jobs, tmp_path, 1)
    queue = Notepad()
    work = Relay(database, queue, with_lease(settings, 1))
    assert await work.relay_batch() == 1
    await enqueue(jobs, tmp_path, 1)

    async def relay_one() -> int:
        queue.space = 1
        await work.relay_batch()
        return len(queue.tickets)

    await eventually(relay_one, lambda sent: sent >= 3)

    lost, new = [Ticket(row.id, 0) for row in await jobs.rows()]
    assert queue.tickets[:3] == [lost, new, lost]


async def test_tickets_that_a_failing_queue_did_not_take_are_sent_again(
    jobs: Jobs, database: Database, settings: Settings, tmp_path: Path
) -> None:
    await enqueue(jobs, tmp_path, 5)
    queue = Notepad(breaks_after=2)

    async def sent() -> set[int]:
        return {ticket.id for ticket in queue.tickets}

    async with running(Relay(database, queue, with_lease(settings, 1))):
        await eventually(sent, lambda found: len(found) == 5)


async def test_of_the_jobs_with_one_key_only_the_oldest_is_sent(
    jobs: Jobs, database: Database, settings: Settings, tmp_path: Path
) -> None:
    await enqueue(jobs, tmp_path, 3, ordering_key="one")
    queue = Notepad()
    work = Relay(database, queue, with_lease(settings, 600))
    ids = [row.id for row in await jobs.rows()]

    for id_ in ids:
        assert await work.relay_batch() == 1
        assert await work.relay_batch() == 0
        async with database.transaction() as session:
            await outbox.finish(session, Ticket(id_, 0))

    assert [ticket.id for ticket in queue.tickets] == ids


async def test_a_relay_that_is_woken_does_not_wait_for_its_next_look(
    jobs: Jobs,
    database: Database,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay, "_POLL_SECONDS", 600)
    queue = Notepad()
    work = Relay(database, queue, settings)

    async def sent() -> int:
        return len(queue.tickets)

    async with running(work):
        for count in (1, 2, 3):
            await enqueue(jobs, tmp_path, 1)
            work.wake()
            await eventually(sent, lambda found: found == count)  # noqa: B023


async def test_relays_hear_of_commits_also_after_redis_was_away(
    jobs: Jobs, settings: Settings, private_redis: ValkeyServer
) -> None:
    url = private_redis.start().url()
    settings = Settings(
        _env_file=None, **{**settings.model_dump(exclude_unset=True), "REDIS_URL": url}
    )
    heard = 0

    def hear() -> None:
        nonlocal heard
        heard += 1

    async def say(redis: RedisClient) -> int:
        async with jobs.database.read_only() as session:
            await wake_relays(redis)(JobsEnqueued(), session)
        return heard

    async with open_redis(settings) as redis:
        listening = asyncio.create_task(listen(redis, settings, hear))
        # The first thing heard is that it has subscribed.
        await eventually(lambda: say(redis), lambda count: count >= 3)
        private_redis.kill()
        await say(redis)
        private_redis.start()
        heard = 0
        await eventually(lambda: say(redis), lambda count: count >= 3)
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening


async def test_what_this_release_does_not_know_is_put_off_and_given_up_in_the_end(
    jobs: Jobs,
    database: Database,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def change(**values: Any) -> None:
        async with database.transaction() as session:
            unknown = OutboxJob.name == of_the_next_release.name
            await session.execute(update(OutboxJob).where(unknown).values(**values))

    now = datetime.now(UTC)
    async with database.transaction() as session:
        for _ in range(150):
            await of_the_next_release.enqueue(session, Note(file=tmp_path))
    await enqueue(jobs, tmp_path, 1)
    queue = Notepad()
    work = Relay(database, queue, with_lease(settings, 600), [note.name])
    others = Relay(database, Notepad(), with_lease(settings, 600), [of_the_next_release.name])

    # Who knows them comes first.
    monkeypatch.setattr(job_rollout, "_LEFT_TO_OTHERS", timedelta(seconds=600))
    assert await work.relay_batch() == 1
    assert all(row.refused_since is None for row in await jobs.rows())
    await change(due_at=now - timedelta(seconds=2))
    assert await others.relay_batch() == 100
    monkeypatch.undo()
    await change(due_at=now - timedelta(seconds=2))
    work = Relay(database, queue, with_lease(settings, 600), [note.name])
    assert await work.relay_batch() == 0
    [*refused, known] = await jobs.rows()
    assert all(row.refused_since and row.due_at and row.due_at > now for row in refused)
    assert {row.tries for row in refused} == {0}

    given_up = now - timedelta(seconds=settings.JOB_ROLLOUT_SECONDS)
    await change(due_at=now, refused_since=given_up)
    assert await work.relay_batch() == 100
    assert Ticket(known.id, 0) == queue.tickets[0]
    assert set(queue.tickets[1:]) <= {Ticket(row.id, 0) for row in refused}
