"""PostgreSQL's settings, timeouts, outages and connection budget."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from structlog.testing import capture_logs

from app.core.background import BackgroundRunner
from app.core.database import Database
from app.core.events import EventBus
from app.core.postgresql import (
    DatabaseSettings,
    create_engine,
    is_lock_timeout,
    is_unavailable,
)
from app.core.postgresql_url import normalize_url
from app.core.settings import AppSettings, SettingError
from devtools.postgresql import PostgresServer

NOBODY = "postgresql://nobody@127.0.0.1:1/none"


def make_settings(url: str, **values: Any) -> DatabaseSettings:
    return DatabaseSettings(DATABASE_URL=SecretStr(url), **values)


@asynccontextmanager
async def opened(url: str, **values: Any) -> AsyncIterator[Database]:
    database = Database(make_settings(url, **values), EventBus(BackgroundRunner(AppSettings())))
    try:
        yield database
    finally:
        await database.close()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://u:p@db:5433/app", "postgresql://u:p@db:5433/app"),
        ("postgres://u:p@db/app", "postgresql://u:p@db/app"),
        ("postgresql+asyncpg://u@[::1]:5432/app", "postgresql://u@[::1]:5432/app"),
        ("postgresql://u:p%40ss@db/app", "postgresql://u:p%40ss@db/app"),
        ("postgresql://u:p@ss@db/app", "postgresql://u:p%40ss@db/app"),
        ("postgresql://u@a:1,b:2/app", "postgresql://u@a:1,b:2/app"),
        (
            "postgresql://u@db/app?sslmode=verify-full&channel_binding=require",
            "postgresql://u@db/app?sslmode=verify-full",
        ),
        (
            "postgresql://u@db/app?schema=public&pgbouncer=true&connection_limit=5&pool_timeout=3",
            "postgresql://u@db/app",
        ),
        ("postgresql:///app?host=/run/postgresql", "postgresql:///app?host=%2Frun%2Fpostgresql"),
    ],
)
def test_urls_of_other_tools_are_translated(given: str, used: str) -> None:
    assert normalize_url(given) == used


@pytest.mark.parametrize(
    "url",
    [
        "file:///app.db",
        "mysql://u:hunter2@db/app",
        "postgresql+psycopg://u:hunter2@db/app",
        "hunter2",
        "",
        "postgresql://u:hunter2@db:port/app",
        "postgresql://u:hunter2@db:99999/app",
        "postgresql://u:pa[hunter2]@db/app",
        "postgresql://u:hunter2\uff1a@db/app",
        f"postgresql://u:p@db:{'1' * 5000}hunter2/app",
        "postgresql://u:hunter2%00@db/app",
        "postgresql://u:hunter2%ff@db/app",
        "postgresql://u:hunter2@db/app?application_name=%00",
        "postgresql://u:hunter2@db/app?sslmode=bogus",
    ],
)
def test_what_is_no_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValidationError) as failure:
        make_settings(url)

    [problem] = failure.value.errors()
    assert problem["loc"] == ("DATABASE_URL",)
    assert "hunter2" not in problem["msg"]
    assert isinstance(problem["ctx"]["error"], SettingError)


def test_the_password_is_not_printed() -> None:
    settings = make_settings("postgresql://u:hunter2@db/app")

    assert "hunter2" not in f"{settings!r} {settings} {create_engine(settings).url}"


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("postgresql://u:postgres@db/app", True),
        ("postgresql://u:ChangeMe@db/app", True),
        ("postgresql://u:@db/app", True),
        ("postgresql://u@db/app?password=secret", True),
        ("postgresql://db/app?user=ada&password=ada", True),
        ("postgresql://u:shop@db?dbname=shop", True),
        ("postgresql://u:long-and-random@db/app", False),
        ("postgresql://u@db/app", False),
    ],
)
def test_production_refuses_well_known_passwords(url: str, refused: bool) -> None:
    problems = list(make_settings(url).production_problems())

    assert bool(problems) is refused
    assert all(problem.startswith("DATABASE_URL: ") for problem in problems)


def test_production_needs_a_url() -> None:
    assert list(DatabaseSettings().production_problems()) == [
        "DATABASE_URL: must be set in production"
    ]


async def test_the_server_learns_the_timeouts_and_who_is_asking(database_url: str) -> None:
    async with (
        opened(
            database_url,
            DB_STATEMENT_TIMEOUT_SECONDS=7,
            DB_LOCK_TIMEOUT_SECONDS=0,
            DB_IDLE_IN_TRANSACTION_TIMEOUT_SECONDS=0.5,
            DB_APPLICATION_NAME="tests",
        ) as database,
        database.read_only() as session,
    ):
        shown = {
            name: await session.scalar(text(f"SHOW {name}"))
            for name in (
                "statement_timeout",
                "lock_timeout",
                "idle_in_transaction_session_timeout",
                "application_name",
            )
        }
    assert list(shown.values()) == ["7s", "0", "500ms", "tests"]


async def test_a_slow_statement_is_ended_by_the_server(database_url: str) -> None:
    with pytest.raises(DBAPIError, match="statement timeout") as failure:
        async with (
            opened(database_url, DB_STATEMENT_TIMEOUT_SECONDS=0.1) as database,
            database.transaction() as session,
        ):
            await session.execute(text("SELECT pg_sleep(30)"))

    assert is_unavailable(failure.value)


async def test_a_lock_that_is_held_too_long_is_unavailability(database_url: str) -> None:
    lock = text("SELECT pg_advisory_xact_lock(1)")
    async with (
        opened(database_url, DB_LOCK_TIMEOUT_SECONDS=0.1) as database,
        database.transaction() as holder,
    ):
        await holder.execute(lock)
        with pytest.raises(DBAPIError, match="lock timeout") as failure:
            async with database.transaction() as waiter:
                await waiter.execute(lock)

    assert is_unavailable(failure.value)
    assert is_lock_timeout(failure.value)


async def test_a_connection_killed_before_commit_writes_nothing(scratch_database_url: str) -> None:
    async with opened(scratch_database_url) as database:
        async with database.transaction() as session:
            await session.execute(text("CREATE TABLE notes (id int)"))

        with pytest.raises(DBAPIError) as failure:
            async with database.transaction() as session:
                await session.execute(text("INSERT INTO notes VALUES (1)"))
                process = await session.scalar(text("SELECT pg_backend_pid()"))
                async with database.transaction() as other:
                    await other.execute(text("SELECT pg_terminate_backend(:p)"), {"p": process})

        assert is_unavailable(failure.value)
        # The pool has replaced the dead connection.
        async with database.read_only() as session:
            assert await session.scalar(text("SELECT count(*) FROM notes")) == 0


async def test_no_server_is_unavailability() -> None:
    async with opened(NOBODY) as database:
        with pytest.raises(DBAPIError, match="cannot connect") as failure:
            await database.ping()

    assert is_unavailable(failure.value)
    assert not is_lock_timeout(failure.value)


@pytest.mark.parametrize(("part", "unknown"), [("path", "/no_such"), ("netloc", "no_such@")])
async def test_a_role_or_a_database_that_the_server_does_not_know_is_unavailability(
    database_url: str, part: str, unknown: str
) -> None:
    parts = urlsplit(database_url)
    host = parts.netloc.rpartition("@")[2]
    url = parts._replace(**{part: unknown + host if part == "netloc" else unknown}).geturl()
    async with opened(url) as database:
        with pytest.raises(DBAPIError, match="no_such") as failure:
            async with database.read_only() as session:
                await session.execute(text("SELECT 1"))

    assert is_unavailable(failure.value)


async def test_a_server_without_encryption_is_refused_when_it_is_required(
    database_url: str,
) -> None:
    async with opened(f"{database_url}?sslmode=require") as database:
        with pytest.raises(DBAPIError, match="SSL"):
            await database.ping()


async def test_an_error_of_the_code_is_not_unavailability(database_url: str) -> None:
    async with opened(database_url) as database:
        with pytest.raises(ProgrammingError) as failure:
            async with database.read_only() as session:
                await session.execute(text("SELECT nonsense"))

    assert not is_unavailable(failure.value)


async def test_everything_recovers_by_itself_when_the_server_is_back(
    private_server: PostgresServer,
) -> None:
    url = (await asyncio.to_thread(private_server.start)).url()
    async with opened(url) as database:
        await database.ping()
        async with database.read_only() as session:
            await session.execute(text("SELECT 1"))

        await asyncio.to_thread(private_server.kill)
        with pytest.raises(DBAPIError) as failure:
            await database.ping()
        assert is_unavailable(failure.value)

        await asyncio.to_thread(private_server.start)
        await database.ping()
        async with database.read_only() as session:
            await session.execute(text("SELECT 1"))


async def test_a_silent_server_is_given_up_by_the_client() -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"postgresql://u@127.0.0.1:{port}/db?sslmode=disable"
    async with server, opened(url, DB_CONNECT_TIMEOUT_SECONDS=0.2) as database:
        with pytest.raises(DBAPIError, match="cannot connect") as failure:
            await database.ping()

    assert is_unavailable(failure.value)


async def test_a_statement_that_is_never_answered_is_given_up(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server's own timeout is off, as if it had vanished.
    monkeypatch.setattr("app.core.postgresql._COMMAND_MARGIN_SECONDS", 0.0)
    async with opened(database_url, DB_STATEMENT_TIMEOUT_SECONDS=0.3) as database:
        process = text("SELECT pg_backend_pid()")
        with pytest.raises(DBAPIError) as failure:
            async with database.transaction() as session:
                given_up = await session.scalar(process)
                await session.execute(text("SET statement_timeout = 0"))
                await session.execute(text("SELECT pg_sleep(30)"))

        assert is_unavailable(failure.value)
        async with database.read_only() as session:
            assert await session.scalar(process) != given_up


async def test_too_many_connections_are_warned_about(database_url: str) -> None:
    async with opened(database_url, WEB_CONCURRENCY=8, REPLICAS=20) as database:
        with capture_logs() as logs:
            await database.warn_if_over_budget()

    [line] = logs
    assert (line["event"], line["log_level"]) == ("connection_budget_exceeded", "warning")
    assert line["needed"] == (10 + 5 + 1) * 8 * 20
    assert 0 < line["allowed"] < line["needed"]
    assert "DB_POOL_SIZE" in line["advice"]


async def test_a_budget_that_suffices_is_not_mentioned(database_url: str) -> None:
    async with opened(database_url, DB_POOL_SIZE=1, DB_MAX_OVERFLOW=0) as database:
        with capture_logs() as logs:
            await database.warn_if_over_budget()

    assert logs == []


@pytest.mark.parametrize("url", [NOBODY, "postgresql://u@10.255.255.1/db"])
async def test_the_budget_of_a_database_that_is_down_holds_nobody_up(url: str) -> None:
    start = time.monotonic()
    async with opened(url) as database:
        with capture_logs() as logs:
            await database.warn_if_over_budget()

    assert time.monotonic() - start < 4
    assert [line["event"] for line in logs] == ["connection_budget_unknown"]
