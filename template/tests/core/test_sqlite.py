"""SQLite's settings, files and locks."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.settings import SettingError
from app.core.sqlite import DatabaseSettings, create_engine, is_unavailable, read_only


def make_settings(url: str, **values: Any) -> DatabaseSettings:
    return DatabaseSettings(DATABASE_URL=SecretStr(url), **values)


@pytest.fixture
async def engine(scratch_database_url: str) -> AsyncIterator[AsyncEngine]:
    settings = make_settings(scratch_database_url, DB_LOCK_TIMEOUT_SECONDS=0.2)
    engine = create_engine(settings)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE parents (id INTEGER PRIMARY KEY)"))
        await connection.execute(text("CREATE TABLE children (id INTEGER REFERENCES parents (id))"))
    yield engine
    await engine.dispose()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("sqlite:///app.db", "sqlite+aiosqlite:///app.db"),
        ("sqlite:////var/lib/app.db", "sqlite+aiosqlite:////var/lib/app.db"),
        ("sqlite+aiosqlite:///app.db", "sqlite+aiosqlite:///app.db"),
        ("sqlite:///app.db?check_same_thread=false", "sqlite+aiosqlite:///app.db"),
    ],
)
def test_relative_and_absolute_files_are_accepted(given: str, used: str) -> None:
    assert make_settings(given).DATABASE_URL.get_secret_value() == used


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("sqlite://", "file"),
        ("sqlite:///app.db?timeout=5", "timeout"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file:app?mode=memory&uri=true", "in memory"),
        ("sqlite://app.db", "must look like sqlite:///"),
        ("app.db", "must look like sqlite:///"),
        ("mysql://user:hunter2@host/db", "must look like sqlite:///"),
        ("other://admin:hunter2/db", "must look like sqlite:///"),
        ("sqlite://admin:hunter2/db", "must look like sqlite:///"),
        ("sqlite://u:pa[hunter2]@h/db", "must look like sqlite:///"),
    ],
)
def test_what_is_no_file_is_refused_without_showing_it(url: str, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint) as failure:
        make_settings(url)

    [problem] = failure.value.errors()
    assert "hunter2" not in problem["msg"]
    assert isinstance(problem["ctx"]["error"], SettingError)


def test_production_needs_a_url() -> None:
    assert list(DatabaseSettings().production_problems()) == [
        "DATABASE_URL: must be set in production"
    ]
    assert not list(make_settings("sqlite:///app.db").production_problems())


def test_a_missing_folder_is_created(tmp_path: Path) -> None:
    create_engine(make_settings(f"sqlite:///{tmp_path}/a/b/app.db"))

    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(RuntimeError, match=r"DATABASE_URL: the folder .*file/a"):
        create_engine(make_settings(f"sqlite:///{tmp_path}/file/a/app.db"))


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 1), ("foreign_keys", 1), ("busy_timeout", 200)],
)
async def test_each_connection_is_configured(
    engine: AsyncEngine, pragma: str, value: object
) -> None:
    async with engine.connect() as connection:
        assert await connection.scalar(text(f"PRAGMA {pragma}")) == value


async def test_ddl_is_rolled_back(engine: AsyncEngine) -> None:
    with pytest.raises(LookupError):
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE other (id INTEGER)"))
            raise LookupError

    with pytest.raises(OperationalError, match="no such table"):
        async with engine.connect() as connection:
            await connection.execute(text("SELECT * FROM other"))


async def test_waiting_too_long_for_the_write_lock_is_unavailability(engine: AsyncEngine) -> None:
    async with engine.begin():
        with pytest.raises(OperationalError, match="locked") as failure:
            async with engine.begin():
                pass

    assert is_unavailable(failure.value)
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO parents VALUES (1)"))


async def test_a_broken_rule_is_not_unavailability(engine: AsyncEngine) -> None:
    with pytest.raises(DBAPIError, match="FOREIGN KEY") as failure:
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO children VALUES (1)"))

    assert not is_unavailable(failure.value)


async def test_a_file_that_is_gone_is_unavailability(tmp_path: Path) -> None:
    engine = create_engine(make_settings(f"sqlite:///{tmp_path}/folder/app.db"))
    (tmp_path / "folder").rmdir()

    with pytest.raises(OperationalError) as failure:
        async with engine.connect():
            pass

    assert is_unavailable(failure.value)


async def test_a_connection_that_fails_leaves_no_thread(tmp_path: Path) -> None:
    engine = create_engine(make_settings(f"sqlite:///{tmp_path}"))
    before = set(threading.enumerate())
    # Each would tell the event loop when it ends, also one that is closed by then.
    for _ in range(20):
        with pytest.raises(OperationalError):
            await engine.connect()
        assert set(threading.enumerate()) <= before


async def test_a_close_that_nobody_waits_for_any_more_ends(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        closing = asyncio.create_task(driver.close())
        await asyncio.sleep(0)
        # What SQLAlchemy does when the wait is cancelled.
        driver.stop()

        await asyncio.wait_for(closing, 10)


async def test_what_is_given_up_keeps_no_lock(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO parents VALUES (1), (2)"))
    async with engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.execute("BEGIN IMMEDIATE")
        # A cancellation may come before the rows are fetched.
        unread = await driver.execute("UPDATE parents SET id = id + 10 RETURNING id")

        await driver.give_up()

        assert not driver.in_transaction
        async with engine.begin() as other:
            assert await other.scalar(text("SELECT max(id) FROM parents")) == 2
        await unread.close()


async def test_a_statement_that_is_cancelled_ends(engine: AsyncEngine) -> None:
    endless = "WITH RECURSIVE n AS (SELECT 1 UNION ALL SELECT 1 FROM n) SELECT count(*) FROM n"
    async with engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        with anyio.move_on_after(0.05):
            await connection.execute(text(endless))

    await engine.dispose()

    assert not driver.is_ending


async def test_no_thread_outlives_the_engine(engine: AsyncEngine) -> None:
    before = set(threading.enumerate())
    async with engine.begin(), engine.connect() as waiting:
        # For the write lock; the thread goes on until the lock's own timeout.
        with anyio.move_on_after(0.05):
            await waiting.execute(text("SELECT 1"))

    await engine.dispose()

    assert set(threading.enumerate()) <= before


async def test_readers_see_the_last_commit_without_waiting_for_a_writer(
    engine: AsyncEngine,
) -> None:
    async with engine.begin() as writer, asyncio.timeout(0.15):
        await writer.execute(text("INSERT INTO parents VALUES (1)"))
        async with read_only(engine).connect() as reader:
            assert await reader.scalar(text("SELECT count(*) FROM parents")) == 0


async def test_a_file_that_takes_no_writes_any_more_is_unavailable(engine: AsyncEngine) -> None:
    with pytest.raises(DBAPIError, match="readonly") as failure:
        async with engine.begin() as connection:
            # What a disk that has been made read-only answers.
            await connection.exec_driver_sql("PRAGMA query_only = 1")
            await connection.execute(text("INSERT INTO parents VALUES (1)"))

    assert is_unavailable(failure.value)


async def test_a_write_in_a_read_only_transaction_is_a_mistake_of_the_code(
    engine: AsyncEngine,
) -> None:
    with pytest.raises(DBAPIError, match="readonly") as failure:
        async with read_only(engine).connect() as connection:
            await connection.execute(text("INSERT INTO parents VALUES (1)"))

    assert not is_unavailable(failure.value)
