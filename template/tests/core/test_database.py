"""Units of work on a real database."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import ClassVar

import anyio
import anyio.lowlevel
import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import ForeignKey, event, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.types import Receive, Scope, Send

from app.core.background import BackgroundRunner
from app.core.database import (
    Base,
    Database,
    DatabaseSettings,
    ReadSessionDep,
    SessionDep,
    is_unavailable,
    is_unique_violation,
)
from app.core.deadline import deadline
from app.core.events import Event, EventBus, record
from app.core.settings import AppSettings


class OwnBase(DeclarativeBase):
    """Tables of these tests, which the service's migrations must not see."""

    metadata = type(Base.metadata)(naming_convention=Base.metadata.naming_convention)


class Counter(OwnBase):
    __tablename__ = "counters"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(default=0)
    name: Mapped[str | None] = mapped_column(unique=True)
    # Checked by COMMIT, so that it can be made to fail.
    parent_id: Mapped[int | None] = mapped_column(
        ForeignKey("counters.id", deferrable=True, initially="DEFERRED")
    )


class CounterAdded(Event):
    name: ClassVar[str] = "counter.added"

    counter_id: int


Heard = list[tuple[int, int | None]]


@pytest.fixture
def heard() -> Heard:
    """The events that were handled, each with what its handler could read of the counter."""
    return []


@pytest.fixture
async def database(database_url: str, heard: Heard) -> AsyncIterator[Database]:
    async def hear(added: CounterAdded, session: AsyncSession) -> None:
        found = await session.scalar(select(Counter.id).where(Counter.id == added.counter_id))
        heard.append((added.counter_id, found))

    settings = DatabaseSettings(
        DATABASE_URL=SecretStr(database_url),
        DB_POOL_SIZE=4,
        DB_MAX_OVERFLOW=1,
        DB_POOL_TIMEOUT_SECONDS=30,
    )
    runner = BackgroundRunner(AppSettings())
    events = EventBus(runner)
    events.subscribe(CounterAdded, hear)
    database = Database(settings, events)
    async with database.engine.begin() as connection:
        await connection.run_sync(OwnBase.metadata.create_all)
    try:
        async with runner:
            yield database
        async with database.engine.begin() as connection:
            await connection.run_sync(OwnBase.metadata.drop_all)
    finally:
        await database.close()


async def count(database: Database) -> int:
    async with database.read_only() as session:
        return await session.scalar(select(func.count()).select_from(Counter)) or 0


async def handled(heard: Heard, at_least: int = 0) -> Heard:
    """What was handled, when whatever was dispatched has had its time."""
    with anyio.fail_after(30):
        while len(heard) < at_least:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    return sorted(heard)


async def test_events_are_handled_after_the_commit_in_a_transaction_of_their_own(
    database: Database, heard: Heard
) -> None:
    async with database.transaction() as session:
        session.add(Counter(id=1))
        record(session, CounterAdded(counter_id=1))
        await session.flush()
        assert await handled(heard) == []

    assert await handled(heard, 1) == [(1, 1)]


async def test_an_error_rolls_back_and_drops_the_events(database: Database, heard: Heard) -> None:
    with pytest.raises(LookupError):
        async with database.transaction() as session:
            session.add(Counter(id=1))
            await session.flush()
            record(session, CounterAdded(counter_id=1))
            raise LookupError

    assert await count(database) == 0
    assert await handled(heard) == []


async def test_a_commit_that_fails_writes_nothing_and_drops_the_events(
    database: Database, heard: Heard
) -> None:
    with pytest.raises(IntegrityError):
        async with database.transaction() as session:
            session.add_all([Counter(id=1), Counter(id=2, parent_id=99)])
            record(session, CounterAdded(counter_id=1))
            await session.flush()

    assert await count(database) == 0
    assert await handled(heard) == []


async def test_a_savepoint_takes_back_its_own_events(database: Database, heard: Heard) -> None:
    async with database.transaction() as session:
        session.add_all([Counter(id=1), Counter(id=2), Counter(id=3)])
        record(session, CounterAdded(counter_id=1))
        async with session.begin_nested():
            record(session, CounterAdded(counter_id=2))
        with pytest.raises(LookupError):
            async with session.begin_nested():
                async with session.begin_nested():
                    record(session, CounterAdded(counter_id=3))
                raise LookupError

    assert await handled(heard, 2) == [(1, 1), (2, 2)]


async def test_concurrent_changes_lose_none(database: Database) -> None:
    async with database.transaction() as session:
        session.add(Counter(id=1))

    async def increment() -> None:
        async with database.transaction() as session:
            counter = await session.get_one(Counter, 1, with_for_update=True)
            await asyncio.sleep(0)
            counter.value += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(40):
            group.create_task(increment())

    async with database.read_only() as session:
        assert (await session.get_one(Counter, 1)).value == 40


async def test_a_read_only_session_cannot_write(database: Database) -> None:
    with pytest.raises(DBAPIError, match=r"read-?only"):
        async with database.read_only() as session:
            await session.execute(text("INSERT INTO counters (id, value) VALUES (1, 0)"))

    # The connection goes back to the pool and writes again.
    async with database.transaction() as session:
        session.add(Counter(id=1))
    assert await count(database) == 1


async def test_objects_stay_readable_after_the_commit(database: Database) -> None:
    async with database.transaction() as session:
        counter = Counter(id=1)
        session.add(counter)

    assert counter.value == 0


async def test_a_deadline_does_not_interrupt_a_commit(database: Database, heard: Heard) -> None:
    with anyio.CancelScope() as scope:

        @event.listens_for(database.engine.sync_engine, "commit", once=True)
        def _(_: object) -> None:
            scope.cancel()

        async with database.transaction() as session:
            session.add(Counter(id=1))
            record(session, CounterAdded(counter_id=1))

    assert scope.cancel_called
    assert await handled(heard, 1) == [(1, 1)]


async def test_a_commit_that_outlasts_the_deadline_ends_in_an_answer(database: Database) -> None:
    with deadline(1) as scope:

        @event.listens_for(database.engine.sync_engine, "commit", once=True)
        def _(_: object) -> None:
            time.sleep(1.05)

        async with database.transaction() as session:
            session.add(Counter(id=1))
        await anyio.lowlevel.checkpoint()

    assert not scope.cancel_called
    assert await count(database) == 1


async def test_past_its_deadline_a_unit_of_work_is_not_committed(database: Database) -> None:
    with anyio.CancelScope() as scope:
        async with database.transaction() as session:
            session.add(Counter(id=1))
            await session.flush()
            scope.cancel()

    assert scope.cancelled_caught
    assert await count(database) == 0


async def test_a_cancelled_transaction_gives_its_locks_back_at_once(database: Database) -> None:
    async with database.transaction() as session:
        session.add(Counter(id=1))
    # Takes longer than this test may, on any database.
    forever = text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000000)"
        " SELECT count(*) FROM n"
    )
    with anyio.move_on_after(0.3) as scope:
        async with database.transaction() as session:
            await session.execute(text("UPDATE counters SET value = value + 1"))
            await session.execute(forever)
    assert scope.cancelled_caught

    with anyio.fail_after(3):
        async with database.transaction() as session:
            await session.execute(text("UPDATE counters SET value = value + 10"))
            assert (await session.get_one(Counter, 1)).value == 10


async def test_an_exhausted_pool_is_unavailable_but_not_a_dead_database(
    scratch_database_url: str,
) -> None:
    settings = DatabaseSettings(
        DATABASE_URL=SecretStr(scratch_database_url),
        DB_POOL_SIZE=2,
        DB_MAX_OVERFLOW=0,
        DB_POOL_TIMEOUT_SECONDS=0.1,
    )
    database = Database(settings, EventBus(BackgroundRunner(AppSettings())))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        for _ in range(2):
            session = await stack.enter_async_context(database.read_only())
            await session.execute(text("SELECT 1"))

        with pytest.raises(Exception, match="QueuePool") as failure:
            async with database.read_only() as session:
                await session.execute(text("SELECT 1"))

        assert is_unavailable(failure.value)
        await database.ping()


async def test_a_unique_violation_is_recognised_by_the_name_of_the_constraint(
    database: Database,
) -> None:
    async with database.transaction() as session:
        session.add(Counter(id=1, name="a"))

    with pytest.raises(IntegrityError) as failure:
        async with database.transaction() as session:
            session.add(Counter(id=2, name="a"))

    assert is_unique_violation(failure.value)
    assert is_unique_violation(failure.value, "uq_counters_name")
    assert not is_unique_violation(failure.value, "pk_counters")
    assert not is_unavailable(failure.value)

    with pytest.raises(IntegrityError) as failure:
        async with database.transaction() as session:
            session.add(Counter(id=1))
    assert is_unique_violation(failure.value, "pk_counters")


async def test_another_violation_is_not_a_unique_violation(database: Database) -> None:
    with pytest.raises(IntegrityError) as failure:
        async with database.transaction() as session:
            session.add(Counter(id=1, parent_id=99))

    assert not is_unique_violation(failure.value)


def test_an_error_of_the_code_is_not_the_databases_unavailability() -> None:
    assert not is_unavailable(TimeoutError())
    assert not is_unavailable(ConnectionRefusedError())


async def test_a_request_commits_before_it_is_answered(database: Database) -> None:
    app = FastAPI()

    @app.post("/counters")
    async def add(session: SessionDep, parent_id: int | None = None) -> None:
        session.add(Counter(id=1, parent_id=parent_id))

    @app.get("/counters")
    async def read(session: ReadSessionDep) -> int:
        return len((await session.scalars(select(Counter))).all())

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": {"database": database}}, receive, send)

    transport = httpx2.ASGITransport(app=with_state, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        failed = await client.post("/counters", params={"parent_id": 99})
        assert failed.status_code == 500
        assert (await client.get("/counters")).json() == 0

        assert (await client.post("/counters")).status_code == 200
        assert (await client.get("/counters")).json() == 1
