"""Errors of PostgreSQL that pass by themselves: of a server that takes no writes, of a column that
has changed; and what a transaction is told through a pooler."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.core.background import BackgroundRunner
from app.core.database import Database
from app.core.events import EventBus
from app.core.postgresql import DatabaseSettings, is_unavailable
from app.core.settings import AppSettings

PROCESS = text("SELECT pg_backend_pid()")
WRITE = text("INSERT INTO notes VALUES (1)")
READ = text("SELECT id FROM notes")
# As a cluster does with all sessions when its disk is full, and as every session of a standby is.
STOP_WRITES = text("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")


@asynccontextmanager
async def opened(url: str, **values: Any) -> AsyncIterator[Database]:
    settings = DatabaseSettings(
        DATABASE_URL=SecretStr(url), DB_POOL_SIZE=1, DB_MAX_OVERFLOW=0, **values
    )
    database = Database(settings, EventBus(BackgroundRunner(AppSettings())))
    try:
        yield database
    finally:
        await database.close()


async def execute(database: Database, *statements: str) -> None:
    async with database.transaction() as session:
        for statement in statements:
            await session.execute(text(statement))


@pytest.fixture
async def database(scratch_database_url: str) -> AsyncIterator[Database]:
    async with opened(scratch_database_url) as database:
        await execute(database, "CREATE TABLE notes (id int)")
        yield database


async def test_a_server_that_takes_no_writes_any_more_is_unavailable_and_its_connection_dropped(
    database: Database,
) -> None:
    async with database.transaction() as session:
        before = await session.scalar(PROCESS)
        await session.execute(STOP_WRITES)

    with pytest.raises(DBAPIError, match="read-only transaction") as failure:
        async with database.transaction() as session:
            await session.execute(WRITE)

    assert is_unavailable(failure.value)
    async with database.transaction() as session:
        assert await session.scalar(PROCESS) != before
        await session.execute(WRITE)


async def test_the_probe_fails_while_no_writes_are_taken(
    database: Database, scratch_database_url: str
) -> None:
    await database.ping()
    name = scratch_database_url.rpartition("/")[2]
    await execute(database, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')

    # The probe's connection does not know yet; a new one would not even be used.
    async with opened(scratch_database_url) as other:
        with pytest.raises(DBAPIError, match="cannot connect") as failure:
            await other.ping()
    assert is_unavailable(failure.value)

    # Whoever wants a server that only reads says so.
    async with opened(f"{scratch_database_url}?target_session_attrs=any") as reader:
        await reader.ping()
        async with reader.read_only() as session:
            await session.execute(READ)

    await execute(database, f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
    async with opened(scratch_database_url) as other:
        await other.ping()


async def test_the_probe_notices_on_a_connection_that_it_has_already(
    database: Database, scratch_database_url: str
) -> None:
    engine = database._probe_engine
    async with engine.begin() as connection:
        await connection.execute(STOP_WRITES)

    with pytest.raises(RuntimeError, match="takes no writes"):
        await database.ping()

    await database.ping()


async def test_a_write_in_a_read_only_session_is_a_mistake_of_the_code(database: Database) -> None:
    async with database.read_only() as session:
        before = await session.scalar(PROCESS)

    with pytest.raises(DBAPIError, match="read-only transaction") as failure:
        async with database.read_only() as session:
            await session.execute(WRITE)

    assert not is_unavailable(failure.value)
    async with database.read_only() as session:
        assert await session.scalar(PROCESS) == before


async def test_a_read_is_repeated_when_a_column_has_another_type_now(
    database: Database, scratch_database_url: str
) -> None:
    await execute(database, "INSERT INTO notes VALUES (1)")
    async with database.read_only() as session:
        await session.execute(READ)
    async with opened(scratch_database_url) as migration:
        await execute(migration, "ALTER TABLE notes ALTER COLUMN id TYPE bigint")

    async with database.read_only() as session:
        await session.execute(text("SELECT 1"))
        assert await session.scalar(READ) == 1
        assert await session.scalar(READ) == 1


async def test_a_transaction_that_writes_is_unavailable_once_when_a_column_has_changed(
    database: Database, scratch_database_url: str
) -> None:
    async with database.transaction() as session:
        await session.execute(READ)
    async with opened(scratch_database_url) as migration:
        await execute(migration, "ALTER TABLE notes ALTER COLUMN id TYPE bigint")

    with pytest.raises(DBAPIError, match="cached statement plan") as failure:
        async with database.transaction() as session:
            await session.execute(WRITE)
            await session.execute(READ)

    assert is_unavailable(failure.value)
    async with database.transaction() as session:
        await session.execute(WRITE)
        assert await session.scalar(READ) == 1


async def test_through_a_pooler_the_timeouts_are_set_for_each_transaction(
    scratch_database_url: str,
) -> None:
    async with opened(f"{scratch_database_url}?pgbouncer=true") as database:
        for transaction in (database.transaction, database.read_only):
            async with transaction() as session:
                assert await session.scalar(text("SHOW statement_timeout")) == "20s"
                assert await session.scalar(text("SHOW lock_timeout")) == "5s"
        async with database.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            assert await connection.scalar(text("SHOW statement_timeout")) == "0"
            prepared = text("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''")
            assert await connection.scalar(prepared) == 0
