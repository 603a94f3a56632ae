"""SQLite: its settings, engines and errors, and the pragmas that make it fit for concurrency."""

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, cast
from weakref import WeakSet

import aiosqlite
import anyio
from pydantic import AfterValidator, Field, SecretStr
from sqlalchemy import (
    AdaptedConnection,
    ColumnElement,
    Connection,
    Index,
    Integer,
    event,
    literal,
    text,
)
from sqlalchemy.engine import Engine, ExceptionContext, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolResetState
from sqlalchemy.util import await_only

from app.core.settings import Section, SettingError
from app.core.types import UtcDateTime

_POLL_SECONDS = 0.01
# Of SQLite's virtual machine, between two looks: some milliseconds.
_STEPS = 100_000
_MARGIN_SECONDS = 1.0
_DRIVERS = ("sqlite", "sqlite+aiosqlite")
_EXPECTED = "must look like sqlite:///path/to/file.db, with a fourth slash for an absolute path"
_UNIQUE_CODES = (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
# The low byte of https://www.sqlite.org/rescode.html
_UNAVAILABLE_CODES = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
)

SERIAL: Final = Integer()
"""The type of keys that the database counts up by itself; it does so for this one only."""

# The cheapest statement that proves that the file can be read; `SELECT 1` does not touch it.
_PROBE: Final = text("SELECT count(*) FROM sqlite_schema")


def _normalize(url: SecretStr) -> SecretStr:
    return SecretStr(normalize_url(url.get_secret_value()))


class DatabaseSettings(Section):
    """Where the database file is, and how long to wait for it."""

    DATABASE_URL: Annotated[SecretStr, AfterValidator(_normalize)] = Field(
        default=SecretStr("sqlite+aiosqlite:///app.db"),
        description="sqlite:///relative/path.db or sqlite:////absolute/path.db",
    )
    DB_POOL_SIZE: int = Field(
        default=10, ge=1, le=1000, description="Connections that one process keeps open."
    )
    DB_MAX_OVERFLOW: int = Field(
        default=5, ge=0, le=1000, description="Connections that it may open beyond those at peaks."
    )
    DB_POOL_TIMEOUT_SECONDS: float = Field(
        default=10, gt=0, le=300, description="How long a request waits for a free connection."
    )
    DB_LOCK_TIMEOUT_SECONDS: float = Field(
        default=5, ge=0, le=3600, description="How long a transaction waits for the write lock."
    )

    def production_problems(self) -> Iterator[str]:
        yield from super().production_problems()
        if "DATABASE_URL" not in self.model_fields_set:
            yield "DATABASE_URL: must be set in production"


def normalize_url(url: str) -> str:
    """Translate a `sqlite:` URL for the driver.

    Raises:
        SettingError: it is no SQLite URL, or it names no file; the message never quotes it.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Their messages quote the URL, or a password that they took for a port.
        raise SettingError(_EXPECTED) from None
    if parsed.drivername not in _DRIVERS or parsed.host:
        raise SettingError(_EXPECTED)
    name = parsed.database or ""
    if name in ("", ":memory:") or name.startswith("file:"):
        # Each connection of the pool would see a database of its own.
        message = "must name a file; a database in memory is not shared by connections"
        raise SettingError(message)
    # Common, and without a meaning for this driver, which has a thread for each connection.
    if unknown := sorted(parsed.query.keys() - {"check_same_thread"}):
        message = f"has options, which are not known here: {', '.join(unknown)}; use DB_* variables"
        raise SettingError(message)
    parsed = parsed.set(drivername="sqlite+aiosqlite", query={})
    return parsed.render_as_string(hide_password=False)


def clock(after: timedelta = timedelta(0)) -> ColumnElement[datetime]:
    """The time that all processes agree on: they are on the machine that has the file.

    Args:
        after: What to add to it; less than nothing for a time in the past.
    """
    return literal(datetime.now(UTC) + after, UtcDateTime())


def create_engine(settings: DatabaseSettings, **overrides: Any) -> AsyncEngine:
    """Create an engine, and the file's folder where it is missing.

    Args:
        settings: The URL, the pool and the lock timeout.
        overrides: Arguments for SQLAlchemy that take precedence, such as `pool_size`.

    Raises:
        RuntimeError: the folder cannot be created.
    """
    url = make_url(settings.DATABASE_URL.get_secret_value())
    folder = Path(url.database or "").parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"DATABASE_URL: the folder {folder} cannot be created ({error.strerror})"
        raise RuntimeError(message) from error
    opened: WeakSet[_Connection] = WeakSet()

    async def connect(*arguments: Any, **options: Any) -> aiosqlite.Connection:
        connection = _Connection(partial(sqlite3.connect, *arguments, **options))
        opened.add(connection)
        try:
            return await connection
        except sqlite3.Error:
            connection.join()
            raise

    def wait_for_ends(_: Engine) -> None:
        await_only(_wait_for_ends(opened, settings.DB_LOCK_TIMEOUT_SECONDS + _MARGIN_SECONDS))

    options: dict[str, Any] = {
        "connect_args": {
            "async_creator_fn": connect,
            # None keeps the driver from opening transactions by itself; `_begin` does that.
            "isolation_level": None,
            "timeout": settings.DB_LOCK_TIMEOUT_SECONDS,
        },
        "pool_size": settings.DB_POOL_SIZE,
        "max_overflow": settings.DB_MAX_OVERFLOW,
        "pool_timeout": settings.DB_POOL_TIMEOUT_SECONDS,
        # Parameters are personal data; they do not belong into logs.
        "hide_parameters": True,
    }
    engine = create_async_engine(url, **{**options, **overrides})
    event.listen(engine.sync_engine, "connect", _configure)
    event.listen(engine.sync_engine, "begin", _begin)
    event.listen(engine.sync_engine, "handle_error", _on_error)
    event.listen(engine.sync_engine, "reset", _reset)
    event.listen(engine.sync_engine, "engine_disposed", wait_for_ends)
    return engine


class _Connection(aiosqlite.Connection):
    """One that can be given up, and stopped twice.

    When the wait for `close` is cancelled, SQLAlchemy stops the connection. `close` then stops it
    once more and waits for the answer of a thread that has ended: for ever, as aiosqlite 0.22 is.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        def connector() -> sqlite3.Connection:
            connection = connect()
            connection.set_progress_handler(lambda: self._is_given_up, _STEPS)
            return connection

        super().__init__(connector, iter_chunk_size=64)
        # As SQLAlchemy has it.
        self._thread.daemon = True
        self._is_given_up = False

    def stop(self) -> asyncio.Future[Any] | None:
        return super().stop() if self._running else None

    async def give_up(self) -> None:
        """End the statement that runs, and roll back.

        Not with `interrupt`: while a statement has rows left, the rollback is interrupted as well,
        and the connection keeps its locks until somebody forgets the cursor.
        """
        self._is_given_up = True
        await self._execute(self._undo)  # type: ignore[no-untyped-call]

    def _undo(self) -> None:
        self._is_given_up = False
        self._conn.rollback()

    @property
    def is_ending(self) -> bool:
        return not self._running and self._thread.is_alive()

    def join(self) -> None:
        """Wait for the thread: it reports to the event loop, which may be closed right after."""
        self._thread.join()


async def _wait_for_ends(opened: Collection[_Connection], seconds: float) -> None:
    # Of those that were stopped within a statement, which no event tells.
    with anyio.move_on_after(seconds):
        while any(connection.is_ending for connection in opened):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)


def _configure(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    # Readers see the last commit while someone writes. The file remembers this one.
    cursor.execute("PRAGMA journal_mode = WAL")
    # In WAL mode a power cut may cost the last commits but never the file's integrity.
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    wants_read_only = bool(connection.get_execution_options().get("read_only"))
    if connection.info.get("query_only", False) is not wants_read_only:
        connection.exec_driver_sql(f"PRAGMA query_only = {wants_read_only:d}")
        connection.info["query_only"] = wants_read_only
    # A transaction that reads first and asks for the write lock later fails at once, whatever
    # the timeout, when another has written in between: so the lock is taken at the start.
    connection.exec_driver_sql("BEGIN" if wants_read_only else "BEGIN IMMEDIATE")


def _reset(connection: DBAPIConnection, _: ConnectionPoolEntry, state: PoolResetState) -> None:
    # After a COMMIT that failed, SQLite's transaction is still open, while SQLAlchemy takes it for
    # ended and would put the connection, with the write lock, back into the pool as it is.
    adapted = cast(AdaptedConnection, connection)
    if not state.terminate_only and adapted.driver_connection.in_transaction:
        connection.rollback()


def _on_error(context: ExceptionContext) -> None:
    error, connection = context.original_exception, context.connection
    code = getattr(error, "sqlite_errorcode", 0)
    # In a transaction that we have made read-only it is a mistake of the code, otherwise the disk.
    ours = connection is not None and connection.get_execution_options().get("read_only")
    if code & 0xFF == sqlite3.SQLITE_READONLY and not ours:
        raise OperationalError(context.statement, None, error, connection_invalidated=True)
    cancelled = isinstance(context.original_exception, asyncio.CancelledError)
    if cancelled and context.connection is not None:
        # A thread knows no cancellation: the statement would run on. And SQLite keeps a closed
        # connection's locks until its last statement is gone, unless it is rolled back before.
        adapted = cast(AdaptedConnection, context.connection.connection.dbapi_connection)
        # Under anyio the wait is cancelled at once; what was asked for is in the queue by then.
        with suppress(asyncio.CancelledError, sqlite3.Error):
            adapted.run_async(_Connection.give_up)


def read_only(engine: AsyncEngine) -> AsyncEngine:
    """A view of `engine`, on the same pool, whose transactions neither write nor wait."""
    return engine.execution_options(read_only=True)


async def probe(engine: AsyncEngine, _: DatabaseSettings) -> None:
    """Prove that the database can be read.

    Raises:
        Exception: it cannot.
    """
    async with read_only(engine).connect() as connection:
        await connection.execute(_PROBE)


def is_unavailable(error: BaseException) -> bool:
    """Whether the database could not do its work now, so that repeating it later may succeed.

    That is: the file is locked for too long or cannot be opened, read, written or extended, or no
    connection of the pool is free.
    """
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = getattr(error.orig, "sqlite_errorcode", 0)
    return error.connection_invalidated or code & 0xFF in _UNAVAILABLE_CODES


def is_lock_timeout(_: BaseException) -> bool:
    """Whether waiting for another transaction was what failed: the file's locks cannot tell.

    It is locked as a whole, so whoever waits knows neither for whom nor for what.
    """
    return False


def is_unique_violation(error: IntegrityError, constraint: str | None = None) -> bool:
    """Whether a value was there already; given a name, by that constraint or unique index.

    SQLite names the columns rather than the constraint, so the name must follow the naming
    convention of `Base`.
    """
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code not in _UNIQUE_CODES:
        return False
    # "UNIQUE constraint failed: books.a, books.b", or "...: index 'name'" for expressions.
    subject = str(error.orig).partition(": ")[2]
    if constraint is None or subject == f"index '{constraint}'":
        return True
    table = subject.partition(".")[0]
    columns = [column.partition(".")[2] for column in subject.split(", ")]
    if code == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
        return constraint == f"pk_{table}"
    return constraint.partition("_")[2] == "_".join([table, *columns])


def partial_unique_index(name: str, *columns: str, where: str) -> Index:
    """Make an index of the rows for which a condition holds, each different in the columns."""
    return Index(name, *columns, unique=True, sqlite_where=text(where))


async def warn_if_over_budget(engine: AsyncEngine, settings: DatabaseSettings) -> None:
    """SQLite opens files, not connections to a server: there is no budget to exceed."""
