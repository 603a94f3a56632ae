"""PostgreSQL: its settings, engines and errors, and how its connections are budgeted."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, cast
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import asyncpg  # type: ignore[import-untyped]
import structlog
from anyio import CancelScope
from pydantic import AfterValidator, Field, SecretStr
from sqlalchemy import (
    AdaptedConnection,
    BigInteger,
    ColumnElement,
    Index,
    Interval,
    event,
    func,
    literal,
    text,
    type_coerce,
)
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.core.settings import Section, SettingError
from app.core.types import UtcDateTime
from app.core.weak_passwords import is_well_known

_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")

# Options of other clients, which asyncpg would send on to a server that does not know them:
# first libpq's, then Prisma's.
_CLIENT_OPTIONS = (
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "gss",
    "keepalives",
    "load_balance_hosts",
    "require",
    "sslcompression",
    "sslsni",
    "tcp_user_timeout",
    "connection_limit",
    "pgbouncer",
    "pool_timeout",
    "socket_timeout",
    "sslaccept",
    "sslidentity",
    "statement_cache_size",
)
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# Classes and codes of https://www.postgresql.org/docs/current/errcodes-appendix.html
_UNAVAILABLE = (
    "08",  # connection exceptions
    "28",  # wrong password or no such user: the credentials are being changed, or wrong
    "25P03",  # idle-in-transaction timeout
    "3D000",  # no such database: not created yet, or being restored
    "40001",  # serialization failure
    "40P01",  # deadlock
    "53",  # insufficient resources, such as too many connections
    "55P03",  # lock timeout
    "57014",  # statement timeout
    "57P",  # shutdown, crash, start-up
)
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

PROBE: Final = text("SELECT 1")
"""The cheapest statement that proves that the database answers."""

logger = structlog.get_logger(__name__)


def _normalize(url: SecretStr) -> SecretStr:
    return SecretStr(normalize_url(url.get_secret_value()))


class DatabaseSettings(Section):
    """How to reach the database, and how long to wait for it; 0 switches a server timeout off."""

    DATABASE_URL: Annotated[SecretStr, AfterValidator(_normalize)] = Field(
        default=SecretStr("postgresql://postgres@localhost:5432/postgres"),
        description="As libpq reads it, such as postgresql://user:password@host/db?sslmode=require",
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
        default=1800, ge=1, description="The age at which a connection is replaced."
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
    WEB_CONCURRENCY: int = Field(default=1, ge=1, description="Server processes of one replica.")
    REPLICAS: int = Field(default=1, ge=1, description="Replicas, for the connection budget.")

    def production_problems(self) -> Iterator[str]:
        yield from super().production_problems()
        if "DATABASE_URL" not in self.model_fields_set:
            yield "DATABASE_URL: must be set in production"
            return
        url = self.DATABASE_URL.get_secret_value()
        password, parts = _password(url), urlsplit(url)
        # No password at all may mean a client certificate, a password file or IAM.
        if password is not None and (
            not password or is_well_known(password, parts.username or "", parts.path)
        ):
            yield "DATABASE_URL: has an empty or well-known password; choose a long random one"


def normalize_url(url: str) -> str:
    """Translate what other tools accept into a `postgresql://` URL that asyncpg reads.

    Options that only libpq understands are dropped; `sslmode` and its companions keep libpq's
    meaning (`require` encrypts, `verify-full` also checks whom it talks to).

    Raises:
        SettingError: it is no PostgreSQL URL; the message never quotes it.
    """
    try:
        return _translate(url)
    except SettingError:
        raise
    except ValueError:
        # Its message quotes the URL, or a password that was taken for a host.
        message = "cannot be read; percent-encode special characters in the password"
        raise SettingError(message) from None


def _translate(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        message = "must look like postgresql://user:password@host:5432/database"
        raise SettingError(message)
    # What is no UTF-8 was replaced, and the server ends a text at NUL.
    if {"\0", "\N{REPLACEMENT CHARACTER}"} & set(unquote(url)):
        message = "has a percent-encoded character that is NUL or not UTF-8"
        raise SettingError(message)
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    user, colon, password = credentials.partition(":")
    # A password copied in as it is may hold an @, which ends it too early for the driver.
    credentials = f"{quote(unquote(user), safe='')}{colon}{quote(unquote(password), safe='')}"
    for host in hosts.split(","):
        port = host.rpartition("]")[2].partition(":")[2]
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            message = "has a port that is not a number; percent-encode / ? # in passwords"
            raise SettingError(message)
    options = {
        name: values[-1]
        for name, values in parse_qs(parts.query, keep_blank_values=True).items()
        if not name.startswith(_CLIENT_OPTIONS)
    }
    if "sslmode" in options and options["sslmode"] not in _SSL_MODES:
        message = f"has an unknown sslmode; use one of {', '.join(_SSL_MODES)}"
        raise SettingError(message)
    if options.get("schema") == "public":
        del options["schema"]  # Prisma's, and the default
    query = urlencode(options, quote_via=quote)
    return f"postgresql://{credentials}{at}{hosts}{parts.path}{'?' if query else ''}{query}"


def _password(url: str) -> str | None:
    credentials, at, _ = urlsplit(url).netloc.rpartition("@")
    _, colon, password = credentials.partition(":")
    query = parse_qs(urlsplit(url).query, keep_blank_values=True)
    if "password" in query:
        return query["password"][-1]
    return unquote(password) if at and colon else None


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
    server_settings["application_name"] = settings.DB_APPLICATION_NAME
    statement_timeout = settings.DB_STATEMENT_TIMEOUT_SECONDS

    async def connect() -> asyncpg.Connection:
        try:
            # asyncpg reads the URL itself: it knows sslmode, several hosts and password files.
            return await asyncpg.connect(
                settings.DATABASE_URL.get_secret_value(),
                timeout=settings.DB_CONNECT_TIMEOUT_SECONDS,
                # For a server that has vanished; a living one ends the statement itself before.
                command_timeout=statement_timeout + _COMMAND_MARGIN_SECONDS
                if statement_timeout
                else None,
                server_settings=server_settings,
            )
        except OSError as error:
            # SQLAlchemy turns only the driver's own errors into its InterfaceError.
            message = f"cannot connect: {type(error).__name__} {error}"
            raise asyncpg.InterfaceError(message) from error

    options: dict[str, Any] = {
        "async_creator": connect,
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
    event.listen(engine.sync_engine, "handle_error", _on_error)
    return engine


def _on_error(context: ExceptionContext) -> None:
    error = context.original_exception
    if isinstance(error, TimeoutError):
        # asyncpg's command_timeout: whether the server still works on it is unknown.
        context.is_disconnect = True
        raise InterfaceError(context.statement, None, error, connection_invalidated=True)
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


def is_unavailable(error: BaseException) -> bool:
    """Whether the database could not do its work now, so that repeating it later may succeed.

    That is: no connection, or none free in the pool, a role or database that the server does not
    know, a statement or a lock that took too long, a deadlock or a serialization failure.
    """
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = getattr(error.orig, "sqlstate", None) or ""
    return (
        error.connection_invalidated
        or isinstance(error, InterfaceError)
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

    Returns within two seconds and never raises.
    """
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
