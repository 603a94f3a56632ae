"""PostgreSQL: its settings, engines and errors, and how its connections are budgeted."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, cast
from urllib.parse import urlsplit

import asyncpg  # type: ignore[import-untyped]
import structlog
from anyio import CancelScope
from pydantic import AfterValidator, Field, SecretStr, model_validator
from sqlalchemy import (
    AdaptedConnection,
    BigInteger,
    ColumnElement,
    Connection,
    Index,
    Interval,
    event,
    func,
    literal,
    text,
    type_coerce,
)
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.core.postgresql_url import normalize_url, option, password, settings_in_url
from app.core.settings import Section
from app.core.types import UtcDateTime
from app.core.weak_passwords import is_easy_to_guess

# Classes and codes of https://www.postgresql.org/docs/current/errcodes-appendix.html
_UNAVAILABLE = (
    "08",  # connection exceptions
    "25P03",  # idle-in-transaction timeout
    "25P04",  # transaction timeout
    "40001",  # serialization failure
    "40P01",  # deadlock
    "53",  # insufficient resources, such as too many connections
    "55P03",  # lock timeout
    "57014",  # statement timeout
    "57P",  # shutdown, crash, start-up
    "58",  # the server's own disk
)
_READ_ONLY = "25006"
_WRITERS = (None, "primary", "read-write")
_LOCK_TIMEOUTS = ("55P03", "57014")
_UNIQUE_VIOLATION = "23505"

_BUDGET_SECONDS = 2.0
_CANCEL_SECONDS = 2.0
_COMMAND_MARGIN_SECONDS = 5.0
# A role or a database may be allowed fewer connections than the server; -1 is "no limit".
_CONNECTION_LIMIT: Final = text("""
    SELECT least(
        current_setting('max_connections')::int
            - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true)::int, 0),
        (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user),
        (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database())
    )
""")

SERIAL: Final = BigInteger()
"""The type of keys that the database counts up by itself."""

_TAKES_WRITES: Final = text(
    "SELECT NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'off'"
)

logger = structlog.get_logger(__name__)


def _normalize(url: SecretStr) -> SecretStr:
    return SecretStr(normalize_url(url.get_secret_value()))


class DatabaseSettings(Section):
    """How to reach the database, and how long to wait for it; 0 switches a server timeout off."""

    DATABASE_URL: Annotated[SecretStr, AfterValidator(_normalize)] = Field(
        default=SecretStr("postgresql://postgres@localhost:5432/postgres"),
        description="As libpq reads it, such as postgresql://user:password@host/db?sslmode=require",
    )
    DB_PGBOUNCER: bool = Field(
        default=False,
        description="Whether the URL leads to a pooler that gives each transaction another "
        "connection, as PgBouncer does in transaction mode; ?pgbouncer=true says the same.",
    )
    DB_POOL_SIZE: int = Field(
        default=10, ge=1, le=1000, description="Connections that one process keeps open."
    )
    DB_MAX_OVERFLOW: int = Field(
        default=5, ge=0, le=1000, description="Connections that it may open beyond those at peaks."
    )
    DB_POOL_TIMEOUT_SECONDS: float = Field(
        default=5, gt=0, le=300, description="How long a request waits for a free connection."
    )
    DB_POOL_RECYCLE_SECONDS: int = Field(
        default=1800,
        ge=1,
        le=31_536_000,
        description="The age at which a connection is replaced.",
    )
    DB_CONNECT_TIMEOUT_SECONDS: float = Field(default=5, gt=0, le=300)
    DB_STATEMENT_TIMEOUT_SECONDS: float = Field(
        default=20, ge=0, le=3600, description="Keep it below REQUEST_TIMEOUT_SECONDS."
    )
    DB_LOCK_TIMEOUT_SECONDS: float = Field(
        default=5, ge=0, le=3600, description="How long a statement waits for another's lock."
    )
    DB_IDLE_IN_TRANSACTION_TIMEOUT_SECONDS: float = Field(
        default=60, ge=0, le=3600, description="When the server ends a forgotten transaction."
    )
    DB_APPLICATION_NAME: str = Field(
        default_factory=socket.gethostname,
        description="What pg_stat_activity calls this process; the host (pod) by default.",
    )
    WEB_CONCURRENCY: int = Field(
        default=1, ge=1, le=1000, description="Server processes of one replica."
    )
    REPLICAS: int = Field(
        default=1, ge=1, le=100_000, description="Replicas, for the connection budget."
    )

    @model_validator(mode="before")
    @classmethod
    def _take_options_out_of_the_url(cls, values: Any) -> Any:
        """Let the URL's options set what no variable sets."""
        url = values.get("DATABASE_URL") if isinstance(values, dict) else None
        if isinstance(url, SecretStr):
            url = url.get_secret_value()
        return {**settings_in_url(url), **values} if isinstance(url, str) else values

    def production_problems(self) -> Iterator[str]:
        yield from super().production_problems()
        if "DATABASE_URL" not in self.model_fields_set:
            yield "DATABASE_URL: must be set in production"
            return
        url = self.DATABASE_URL.get_secret_value()
        given, parts = password(url), urlsplit(url)
        in_query = (option(url, name) or "" for name in ("user", "database", "dbname"))
        names = ("postgres", "postgresql", parts.username or "", parts.path, *in_query)
        # No password at all may mean a client certificate, a password file or IAM.
        if given is not None and (not given or is_easy_to_guess(given, *names)):
            yield "DATABASE_URL: has a short or well-known password; choose a long random one"


def clock(after: timedelta = timedelta(0)) -> ColumnElement[datetime]:
    """The time of the statement by the server's clock, for what several processes decide about.

    Theirs need not agree.

    Args:
        after: What to add to it; less than nothing for a time in the past.
    """
    return type_coerce(func.statement_timestamp() + literal(after, Interval()), UtcDateTime())


def create_engine(settings: DatabaseSettings, **overrides: Any) -> AsyncEngine:
    """Create an engine; nothing connects before its first use.

    Args:
        settings: The URL, the pool and the timeouts.
        overrides: Arguments for SQLAlchemy that take precedence, such as `pool_size`.
    """
    timeouts = {
        "statement_timeout": settings.DB_STATEMENT_TIMEOUT_SECONDS,
        "lock_timeout": settings.DB_LOCK_TIMEOUT_SECONDS,
        "idle_in_transaction_session_timeout": settings.DB_IDLE_IN_TRANSACTION_TIMEOUT_SECONDS,
    }
    # 0 is left out rather than sent: some poolers refuse parameters that they do not know.
    server_settings = {
        name: str(max(1, round(seconds * 1000))) for name, seconds in timeouts.items() if seconds
    }
    statement_timeout = settings.DB_STATEMENT_TIMEOUT_SECONDS
    url = settings.DATABASE_URL.get_secret_value()
    startup = {"application_name": settings.DB_APPLICATION_NAME}
    if not settings.DB_PGBOUNCER:
        startup |= server_settings

    async def connect() -> asyncpg.Connection:
        try:
            # asyncpg reads the URL itself: it knows sslmode, several hosts and password files.
            return await asyncpg.connect(
                url,
                timeout=settings.DB_CONNECT_TIMEOUT_SECONDS,
                # For a server that has vanished; a living one ends the statement itself before.
                command_timeout=statement_timeout + _COMMAND_MARGIN_SECONDS
                if statement_timeout
                else None,
                server_settings=startup,
                # Without names, statements are parsed and executed in one message: whichever
                # connection the pooler hands out.
                statement_cache_size=0 if settings.DB_PGBOUNCER else 100,
                # After a failover the URL may lead to a standby for a while.
                target_session_attrs=None if option(url, "target_session_attrs") else "read-write",
            )
        except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError) as error:
            # Whatever the reason, and also a password that is being changed or a database that is
            # being restored, it may be gone soon. SQLAlchemy knows this one as its InterfaceError.
            message = f"cannot connect: {type(error).__name__} {error}"
            raise asyncpg.InterfaceError(message) from error

    options: dict[str, Any] = {
        "connect_args": {
            "async_creator_fn": connect,
            "prepared_statement_cache_size": 0 if settings.DB_PGBOUNCER else 100,
        },
        "pool_size": settings.DB_POOL_SIZE,
        "max_overflow": settings.DB_MAX_OVERFLOW,
        "pool_timeout": settings.DB_POOL_TIMEOUT_SECONDS,
        "pool_recycle": settings.DB_POOL_RECYCLE_SECONDS,
        # A request must not be the one that finds out that the server was restarted.
        "pool_pre_ping": True,
        # Parameters are personal data; they do not belong into logs.
        "hide_parameters": True,
    }
    engine = create_async_engine("postgresql+asyncpg://", **{**options, **overrides})
    event.listen(engine.sync_engine, "do_execute", _execute)
    event.listen(engine.sync_engine, "handle_error", _on_error)
    if settings.DB_PGBOUNCER and server_settings:
        event.listen(engine.sync_engine, "begin", _set_locally(server_settings))
    return engine


def _set_locally(server_settings: dict[str, str]) -> Callable[[Connection], None]:
    """Make a transaction begin with settings that end with it, as nothing else does in a pooler."""
    calls = (f"set_config('{name}', '{value}', true)" for name, value in server_settings.items())
    statement = f"SELECT {', '.join(calls)}"

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(statement)

    return begin


def _execute(
    cursor: DBAPICursor, statement: str, parameters: Any, context: DefaultExecutionContext
) -> bool:
    """Read once more when a migration has changed the columns since the statement was prepared.

    Only where the transaction has written nothing that would be lost, and, as each statement sees
    what is committed when it begins, without any other difference.
    """
    try:
        cursor.execute(statement, parameters)
    except Exception as error:
        if not _is_read_only(context.root_connection) or not _is_outdated(error):
            raise
        # What SQLAlchemy does between two statements, so that the next one is prepared anew.
        context.handle_dbapi_exception(error)  # type: ignore[no-untyped-call]
        context.root_connection.connection.rollback()
        context.pre_exec()  # type: ignore[no-untyped-call]
        cursor.execute(statement, parameters)
    return True


def _is_outdated(error: BaseException | None) -> bool:
    return isinstance(getattr(error, "__cause__", None), asyncpg.InvalidCachedStatementError)


def _is_read_only(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get("postgresql_readonly"))


def _on_error(context: ExceptionContext) -> None:
    error = context.original_exception
    if isinstance(error, TimeoutError):
        # asyncpg's command_timeout: whether the server still works on it is unknown.
        context.is_disconnect = True
        raise InterfaceError(context.statement, None, error, connection_invalidated=True)
    if getattr(error, "sqlstate", None) == _READ_ONLY:
        # Of a server that takes no writes (any more): the pool is to find the one that does. In a
        # transaction that we have made read-only it is a mistake of the code.
        context.is_disconnect = context.connection is not None and not _is_read_only(
            context.connection
        )
    if isinstance(error, asyncio.CancelledError) and context.connection is not None:
        # Otherwise the next round of anyio's cancellation would stop the driver from telling the
        # server, where the statement would run on and keep its locks.
        adapted = cast(AdaptedConnection, context.connection.connection.dbapi_connection)
        with CancelScope(shield=True):  # noqa: ASYNC100, run_async awaits
            adapted.run_async(_cancel_and_close)


async def _cancel_and_close(connection: asyncpg.Connection) -> None:
    with suppress(TimeoutError, OSError, asyncpg.PostgresError):
        await connection.close(timeout=_CANCEL_SECONDS)


def read_only(engine: AsyncEngine) -> AsyncEngine:
    """A view of `engine`, on the same pool, whose transactions the server keeps from writing."""
    return engine.execution_options(postgresql_readonly=True)


async def probe(engine: AsyncEngine, settings: DatabaseSettings) -> None:
    """Prove that the database answers and takes writes.

    Raises:
        Exception: it does not. Whoever wants a server that only reads says so in the URL with
            `target_session_attrs`, as libpq knows it.
    """
    async with read_only(engine).connect() as connection:
        takes_writes = await connection.scalar(_TAKES_WRITES)
        url = settings.DATABASE_URL.get_secret_value()
        if not takes_writes and option(url, "target_session_attrs") in _WRITERS:
            # The next probe may find another server behind the same name.
            await connection.invalidate()
            message = "the database takes no writes: it is a standby, or has been made read-only"
            raise RuntimeError(message)


def is_unavailable(error: BaseException) -> bool:
    """Whether the database could not do its work now, so that repeating it later may succeed.

    That is: no connection, or none free in the pool, a server that takes no writes, a statement or
    a lock that took too long, a deadlock or a serialization failure, or a statement that was
    prepared before a migration changed its columns.
    """
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = getattr(error.orig, "sqlstate", None) or ""
    return (
        error.connection_invalidated
        or isinstance(error, InterfaceError)
        or _is_outdated(error.orig)
        or code.startswith(_UNAVAILABLE)
    )


def is_lock_timeout(error: BaseException) -> bool:
    """Whether a statement had to wait too long, most likely for another transaction's lock."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in _LOCK_TIMEOUTS


def is_unique_violation(error: IntegrityError, constraint: str | None = None) -> bool:
    """Whether a value was there already; given a name, by that constraint or unique index."""
    cause = getattr(error.orig, "__cause__", None)
    return getattr(cause, "sqlstate", None) == _UNIQUE_VIOLATION and (
        constraint is None or getattr(cause, "constraint_name", None) == constraint
    )


def partial_unique_index(name: str, *columns: str, where: str) -> Index:
    """Make an index of the rows for which a condition holds, each different in the columns."""
    return Index(name, *columns, unique=True, postgresql_where=text(where))


async def warn_if_over_budget(engine: AsyncEngine, settings: DatabaseSettings) -> None:
    """Log a warning when all processes together may open more connections than the server takes.

    Returns within two seconds and never raises. A pooler has a budget of its own.
    """
    if settings.DB_PGBOUNCER:
        return
    # Each process keeps one more for its readiness probe.
    per_process = settings.DB_POOL_SIZE + settings.DB_MAX_OVERFLOW + 1
    needed = per_process * settings.WEB_CONCURRENCY * settings.REPLICAS
    try:
        async with asyncio.timeout(_BUDGET_SECONDS), engine.connect() as connection:
            allowed = await connection.scalar(_CONNECTION_LIMIT)
    except (TimeoutError, OSError, SQLAlchemyError) as error:
        logger.warning("connection_budget_unknown", error=type(error).__name__)
        return
    if allowed is not None and needed > allowed:
        logger.warning(
            "connection_budget_exceeded",
            needed=needed,
            allowed=allowed,
            per_process=per_process,
            advice="lower DB_POOL_SIZE or DB_MAX_OVERFLOW, run fewer processes "
            "(WEB_CONCURRENCY x REPLICAS), raise max_connections, or use a pooler",
        )
