from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path

import anyio
import pytest
from sqlalchemy import select, update

from app.core import outbox
from app.core.database import Database
from app.core.job_rollout import refuse_unknown
from app.core.outbox import OutboxJob, SupersededError, Ticket
from tests.fixtures.jobs import Jobs
from tests.jobs.definitions import Note, note

LEASE = timedelta(seconds=60)
HOUR = timedelta(hours=1)


@pytest.fixture
def payload(tmp_path: Path) -> Note:
    return Note(file=tmp_path / "notes")


async def take(database: Database, limit: int = 100, lease: timedelta = LEASE) -> list[Ticket]:
    async with database.transaction() as session:
        return list(await outbox.take_due(session, limit, lease))


async def let_an_hour_pass(database: Database) -> None:
    async with database.transaction() as session:
        for row in await session.scalars(select(OutboxJob)):
            row.due_at = row.due_at and row.due_at - HOUR


async def test_a_job_exists_if_and_only_if_its_transaction_commits(
    jobs: Jobs, database: Database, payload: Note
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as session:
            await note.enqueue(session, payload)
            raise ZeroDivisionError
    assert not await jobs.rows()

    async with database.transaction() as session:
        await note.enqueue(session, payload)
        assert not await jobs.rows()
    assert [row.name for row in await jobs.rows()] == ["tests.note"]


async def test_a_job_id_is_used_once(jobs: Jobs, payload: Note) -> None:
    added = [await jobs.enqueue(note, payload, job_id="unique") for _ in range(2)]

    assert added == [True, False]
    assert len(await jobs.rows()) == 1


async def test_of_concurrent_jobs_with_one_id_one_is_added(jobs: Jobs, payload: Note) -> None:
    added: list[bool] = []

    async def add() -> None:
        added.append(await jobs.enqueue(note, payload, job_id="unique"))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(add)

    assert Counter(added) == {True: 1, False: 9}
    assert len(await jobs.rows()) == 1


async def test_concurrent_relays_take_each_job_once(
    jobs: Jobs, database: Database, payload: Note
) -> None:
    for _ in range(40):
        await jobs.enqueue(note, payload)
    taken: list[Ticket] = []

    async def relay() -> None:
        while len(taken) <= 40 and (tickets := await take(database, 3)):
            taken.extend(tickets)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(relay)

    assert sorted(ticket.id for ticket in taken) == [row.id for row in await jobs.rows()]


async def test_what_nobody_begins_within_the_lease_comes_up_again(
    jobs: Jobs, database: Database, payload: Note
) -> None:
    await jobs.enqueue(note, payload)

    first = await take(database, lease=HOUR)
    assert await take(database) == []
    await let_an_hour_pass(database)
    assert await take(database) == first


async def test_a_delayed_job_waits(jobs: Jobs, database: Database, payload: Note) -> None:
    await jobs.enqueue(note, payload, delay=HOUR)

    assert await take(database) == []
    await let_an_hour_pass(database)
    assert len(await take(database)) == 1


async def test_an_ordering_key_lets_one_job_through_at_a_time(
    jobs: Jobs, database: Database, payload: Note
) -> None:
    for key in ("one", "one", "two", None, None):
        await jobs.enqueue(note, payload, ordering_key=key)
    first, second, *others = [row.id for row in await jobs.rows()]

    assert [ticket.id for ticket in await take(database)] == [first, *others]
    async with database.transaction() as session:
        await outbox.finish(session, Ticket(first, 0))
    assert [ticket.id for ticket in await take(database)] == [second]


async def test_only_the_holder_of_the_current_try_can_change_a_job(
    jobs: Jobs, database: Database, payload: Note
) -> None:
    await jobs.enqueue(note, payload)
    [ticket] = await take(database)
    for tries in (0, 1):
        async with database.transaction() as session:
            assert await outbox.begin_try(session, Ticket(ticket.id, tries), LEASE)
            assert not await outbox.begin_try(session, Ticket(ticket.id, tries), LEASE)

    changes: list[Callable[..., Awaitable[None]]] = [
        outbox.finish,
        outbox.give_back,
        partial(outbox.postpone, delay=LEASE),
        partial(outbox.refuse, delay=LEASE),
    ]
    for change in changes:
        with pytest.raises(SupersededError):
            async with database.transaction() as session:
                await change(session, Ticket(ticket.id, 1))
    async with database.transaction() as session:
        await outbox.finish(session, Ticket(ticket.id, 2))


async def test_the_leases_of_many_jobs_are_kept_but_not_of_those_that_someone_else_has_begun(
    jobs: Jobs, database: Database, payload: Note
) -> None:
    async with database.transaction() as session:
        for _ in range(3):
            await note.enqueue(session, payload)
    mine, lost, done = [ticket.id for ticket in await take(database)]
    async with database.transaction() as session:
        await outbox.begin_try(session, Ticket(lost, 0), LEASE)
        await outbox.finish(session, Ticket(done, 0))
    before = {row.id: row.due_at for row in await jobs.rows()}
    # As many as a worker may be told to run at once.
    more = [Ticket(2**31 + number, 0) for number in range(1000)]

    async with database.transaction() as session:
        await outbox.keep(session, [*more, *(Ticket(id_, 0) for id_ in before)], 2 * LEASE)

    changed = [row.id for row in await jobs.rows() if row.due_at != before[row.id]]
    assert changed == [mine]


async def test_a_lease_that_is_kept_too_late_does_not_hasten_what_was_postponed(
    jobs: Jobs, database: Database, payload: Note
) -> None:
    await jobs.enqueue(note, payload)
    [ticket] = await take(database)
    async with database.transaction() as session:
        await outbox.postpone(session, ticket, 60 * LEASE)
    [postponed] = await jobs.rows()

    async with database.transaction() as session:
        await outbox.keep(session, [ticket], LEASE)

    assert [row.due_at for row in await jobs.rows()] == [postponed.due_at]


async def test_only_what_was_done_long_ago_is_purged(
    jobs: Jobs, database: Database, payload: Note
) -> None:
    for _ in range(3):
        await jobs.enqueue(note, payload)
    old, new, unfinished = [row.id for row in await jobs.rows()]
    for id_ in (old, new):
        async with database.transaction() as session:
            await outbox.finish(session, Ticket(id_, 0))
    async with database.transaction() as session:
        long_ago = datetime.now(UTC) - timedelta(days=8)
        await session.execute(update(OutboxJob).where(OutboxJob.id == old).values(done_at=long_ago))

    async with database.transaction() as session:
        assert await outbox.purge(session, timedelta(days=7)) == 1

    assert [row.id for row in await jobs.rows()] == [new, unfinished]


@contextmanager
def another_process(ahead: timedelta) -> Iterator[None]:
    """What is done on another machine, whose clock differs."""

    class Elsewhere(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Elsewhere":
            return cls.fromtimestamp((datetime.now(tz) + ahead).timestamp(), tz)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("arq_queue", "dead_letters", "job_rollout", "jobs", "outbox"):
            patch.setattr(f"app.core.{name}.datetime", Elsewhere, raising=False)
        yield


@pytest.mark.parametrize("minutes", [5, -5])
async def test_processes_whose_clocks_differ_agree_on_what_is_due(
    jobs: Jobs, database: Database, payload: Note, minutes: int
) -> None:
    def elsewhere() -> AbstractContextManager[None]:
        return another_process(timedelta(minutes=minutes))

    with elsewhere():
        await jobs.enqueue(note, payload)
        await jobs.enqueue(note, payload, delay=LEASE)
    [ticket] = await take(database)
    with elsewhere():
        assert await take(database) == []
        async with database.transaction() as session:
            # It has another name there, in another release.
            await refuse_unknown(session, [], timedelta(hours=1))
            await refuse_unknown(session, [], timedelta(0))
            assert await outbox.begin_try(session, ticket, LEASE)
    assert await take(database) == []
    with elsewhere():
        async with database.transaction() as session:
            await outbox.keep(session, [Ticket(ticket.id, 1)], LEASE)
    assert await take(database) == []
    with elsewhere():
        async with database.transaction() as session:
            await outbox.give_back(session, Ticket(ticket.id, 1))
    assert await take(database) == [ticket]
    with elsewhere():
        async with database.transaction() as session:
            await outbox.finish(session, ticket)
    async with database.transaction() as session:
        assert await outbox.purge(session, LEASE) == 0
    with elsewhere():
        async with database.transaction() as session:
            assert await outbox.purge(session, LEASE) == 0
