"""Redis: the process's one client, and the breaker that keeps an outage from costing time."""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Annotated, Any, Final, TypeVar
from uuid import uuid4
from weakref import WeakKeyDictionary

import structlog
from anyio import fail_after
from fastapi import Depends
from prometheus_client import Counter, Gauge
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from starlette.requests import HTTPConnection

from app.core.errors import ServiceUnavailableError
from app.core.redis_settings import KeyPrefix, RedisSettings
from app.core.tasks import end_tasks
from app.core.telemetry import step

__all__ = [
    "REDIS_ERRORS",
    "KeyPrefix",
    "RedisClient",
    "RedisDep",
    "RedisSettings",
    "RedisUnavailableError",
    "create_pool",
    "open_redis",
]

_FIRST_PROBE_SECONDS = 0.1
_LAST_PROBE_SECONDS = 2.0
_PROBE_LIFE_MILLISECONDS = 60_000

# That the server cannot be used at all, unlike a command that was wrong. OSError includes
# TimeoutError; a server that is only read from or has no memory left is of no use.
_OUTAGE: Final = (
    RedisConnectionError,
    RedisTimeoutError,
    OSError,
    ClusterDownError,
    OutOfMemoryError,
    ReadOnlyError,
)
# The same, where redis-py has no class for it or a server before Redis 7 wraps it in the error of
# a script.
_OUTAGE_REPLY: Final = re.compile(
    r"(^|: -)(BUSY|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY) "
)

_OPEN = Gauge(
    "redis_breaker_open",
    "Whether Redis is taken for unavailable, by some process at least.",
    multiprocess_mode="livemax",
)
_OUTAGES = Counter("redis_outages", "How often the breaker has opened.")

T = TypeVar("T")
Command = Callable[[Redis], Awaitable[T]]

logger = structlog.get_logger(__name__)


class RedisUnavailableError(ServiceUnavailableError):
    """Redis does not answer; a route that cannot do without it answers 503."""


REDIS_ERRORS: Final = (RedisError, RedisUnavailableError)
"""Everything that `RedisClient.call` can fail with; for callers that can do without Redis."""


def create_pool(settings: RedisSettings, **overrides: Any) -> BlockingConnectionPool:
    """Create a pool; nothing connects before its first use.

    A caller waits for a free connection instead of failing. What redis-py's versions do
    differently by default is set here: the protocol, the timeouts, the retries (one, at once, for
    a connection that was closed meanwhile; none after a timeout) and TLS host names.

    Args:
        settings: The URL, the size and the timeouts.
        overrides: Arguments for the pool and its connections that take precedence.
    """
    url = settings.REDIS_URL.get_secret_value()
    timeout = settings.REDIS_TIMEOUT_SECONDS
    options: dict[str, Any] = {
        "max_connections": settings.REDIS_POOL_SIZE,
        "timeout": timeout,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 1, (RedisConnectionError,)),
        "retry_on_error": [RedisConnectionError],
    }
    if not url.startswith("unix:"):
        options["socket_keepalive"] = True
    if url.startswith("rediss:"):
        # Version 5 would accept the certificate of any host.
        options["ssl_check_hostname"] = "ssl_cert_reqs=none" not in url
    pool = BlockingConnectionPool.from_url(url, **{**options, **overrides})
    pool.connection_class = _telling(pool.connection_class)
    return pool


def _telling(base: Any) -> Any:
    """A class of connections, with redis-py's error where uvloop has one that it does not know.

    That is for what is written just after the connection has ended; asyncio's own transports have
    an `OSError` there.
    """

    class Connection(base):  # type: ignore[misc]
        async def send_packed_command(self, *arguments: Any, **options: Any) -> None:
            try:
                await super().send_packed_command(*arguments, **options)
            except RuntimeError as error:
                if "handler is closed" not in str(error):
                    raise
                raise RedisConnectionError(str(error)) from error

    return Connection


class RedisClient:
    """The process's connections to Redis, behind a circuit breaker.

    The first use that fails opens the breaker: from then on `call` fails at once, so that an
    outage costs each request at most one `REDIS_TIMEOUT_SECONDS`, and only those that were under
    way when it began. One task asks the server until it takes a write again, then closes the
    breaker: no request pays for finding out.

    What is cached belongs to a generation, a random value that all processes share: entries of
    another one do not count. It is renewed after each outage, during which changes could not be
    removed, by whichever process is back first. Nobody need have noticed the outage: whatever
    connects after a connection was lost renews it before it is used. One more connection, or the
    first one of a process, is no sign of an outage.

    Args:
        settings: Where Redis is; nothing connects before the first use.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._timeout = settings.REDIS_TIMEOUT_SECONDS
        self._prefix = settings.REDIS_KEY_PREFIX
        self.generation_key = self.key("generation")
        # By connection its stream, of those that were made since the generation was last renewed.
        self._streams: WeakKeyDictionary[Any, asyncio.StreamReader] = WeakKeyDictionary()
        self._greeting = asyncio.Lock()
        # How many removals have failed, and for how many of them the generation was renewed.
        self._not_removed = 0
        self._made_up_for = 0
        pool = create_pool(settings, redis_connect_func=self._greet)
        self.raw: Redis = Redis.from_pool(pool)
        self._on_recovery: list[Command[object]] = []
        self._recovery: asyncio.Task[None] | None = None
        self._outages = 0
        self._closed = False
        _OPEN.set(0)
        # One for each connection of the pool: that all are in use is no outage, and redis-py's own
        # error for it cannot be told from one.
        self._free = asyncio.Semaphore(settings.REDIS_POOL_SIZE)

    def key(self, *parts: str) -> str:
        """Name a key: the service's prefix, then the parts."""
        return ":".join((self._prefix, *parts))

    @property
    def is_available(self) -> bool:
        """Whether the last use was answered; `call` fails at once while it was not."""
        return self._recovery is None

    async def call(self, command: Command[T]) -> T:
        """Run a command, or several on one client, within `REDIS_TIMEOUT_SECONDS` altogether.

        Where all `REDIS_POOL_SIZE` connections are in use, it waits as long again for one first.

        Args:
            command: Gets redis-py's client; must not block on purpose (`BLPOP`, `subscribe`).

        Raises:
            RedisUnavailableError: the server cannot be used now, or no connection became free;
                whether the command was executed is unknown.
            RedisError: the server refused this very command.
        """
        self._refuse_while_unavailable()
        if self._free.locked():
            await self._wait()
        else:
            await self._free.acquire()
        try:
            return await self._call(command)
        finally:
            self._free.release()

    async def _wait(self) -> None:
        try:
            with fail_after(self._timeout, shield=True):
                await self._free.acquire()
        except TimeoutError as error:
            raise RedisUnavailableError from error

    def _refuse_while_unavailable(self) -> None:
        # A request that outlives the shutdown must not open a connection that nobody closes.
        if self._recovery is not None or self._closed:
            raise RedisUnavailableError

    async def _call(self, command: Command[T]) -> T:
        self._refuse_while_unavailable()
        outages = self._outages
        name = getattr(command, "__qualname__", type(command).__qualname__)
        try:
            # By the code that uses it: keys may hold personal data.
            with step(f"redis {name.replace('.<locals>', '')}", db__system__name="redis"):
                return await self._bounded(command)
        except (*_OUTAGE, ResponseError) as error:
            if not _is_outage(error):
                raise
            # What began before an outage says nothing about the time after it.
            if outages == self._outages:
                self._open(error)
            raise RedisUnavailableError from error

    async def invalidate(self, command: Command[object]) -> None:
        """Remove something that is cached; if that fails, all that is cached is void.

        Args:
            command: Removes it; a failure is made up for before this process reads again.
        """
        removed = False
        try:
            await self.call(command)
            removed = True
        except REDIS_ERRORS as error:
            logger.debug("redis_entry_not_removed", error=type(error).__name__)
        finally:
            # Also when cancelled.
            if not removed:
                self._not_removed += 1

    async def ping(self) -> None:
        """Prove that the server takes writes.

        Raises:
            RedisUnavailableError: it does not answer, or did not when it was last asked: a probe
                must not be slow for as long as the server hangs.
            RedisError: it refuses.
        """
        await self.call(self._probe)

    def on_recovery(self, command: Command[object]) -> None:
        """Have `command` run after each outage, before anyone else uses the server again."""
        self._on_recovery.append(command)

    async def close(self) -> None:
        """Close every connection; from then on `call` fails."""
        self._closed = True
        if self._recovery is not None:
            await end_tasks(self._recovery)
        await self.raw.aclose()

    async def _bounded(self, command: Command[T]) -> T:
        # A request past its deadline still has things to put right here, such as a lease to give
        # back, and a command that is cut short costs its connection. The time is limited anyway.
        # Not asyncio.timeout, which cancels once: redis-py calls asyncio.wait_for, which on Python
        # 3.11 swallows a cancellation that comes just when it is done. This scope repeats it.
        with fail_after(self._timeout, shield=True):
            if self._made_up_for < self._not_removed:
                await self._renew(self.raw)
            return await command(self.raw)

    async def _greet(self, connection: Any) -> None:
        """What redis-py calls when it has connected, instead of the connection's own part."""
        await connection.on_connect()
        # One by one, so that of those that come after an outage only the first one renews.
        async with self._greeting:
            lost = [it for it, stream in self._streams.items() if _is_lost(it, stream)]
            if lost:
                await connection.send_command("SET", self.generation_key, uuid4().hex)
                await connection.read_response()
                for it in lost:
                    del self._streams[it]
            self._streams[connection] = _stream(connection)

    async def _renew(self, client: Redis) -> None:
        until_now = self._not_removed
        await client.set(self.generation_key, uuid4().hex)
        self._made_up_for = max(self._made_up_for, until_now)

    def _open(self, error: Exception) -> None:
        self._outages += 1
        _OUTAGES.inc()
        _OPEN.set(1)
        logger.warning("redis_unavailable", error=type(error).__name__, reason=str(error)[:200])
        # An empty context: it is no part of the request that happened to notice.
        self._recovery = asyncio.create_task(
            self._recover(), name="redis_recovery", context=Context()
        )

    async def _recover(self) -> None:
        began = time.monotonic()
        delay = _FIRST_PROBE_SECONDS
        hangs = False
        while True:
            # A server that hangs is asked again at once: when it goes on, it must hear of what has
            # ended meanwhile before a process that was idle takes that from the cache.
            if not hangs:
                # Jitter, so that not all processes come back in the same moment.
                await asyncio.sleep(delay * random.uniform(0.5, 1))
                delay = min(delay * 2, _LAST_PROBE_SECONDS)
            try:
                await self._bounded(self._renew)
                for command in self._on_recovery:
                    await self._bounded(command)
            except (RedisError, OSError) as error:
                hangs = isinstance(error, (TimeoutError, RedisTimeoutError))
                continue
            except Exception:
                logger.exception("redis_recovery_failed")
                continue
            break
        self._recovery = None
        _OPEN.set(0)
        logger.info("redis_recovered", outage_seconds=round(time.monotonic() - began, 3))

    async def _probe(self, client: Redis) -> None:
        # A write, because a replica or a full server answers PING as well.
        await client.set(self.key("probe"), "", px=_PROBE_LIFE_MILLISECONDS)


def _is_outage(error: Exception) -> bool:
    return isinstance(error, _OUTAGE) or bool(_OUTAGE_REPLY.search(str(error)))


def _stream(connection: Any) -> Any:
    # redis-py itself finds out that it has ended only when it uses the connection.
    return connection._reader  # noqa: SLF001


def _is_lost(connection: Any, stream: asyncio.StreamReader) -> bool:
    replaced = _stream(connection) is not stream
    return replaced or stream.at_eof() or stream.exception() is not None


@asynccontextmanager
async def open_redis(settings: RedisSettings) -> AsyncIterator[RedisClient]:
    """Open the client for the life of the process; works while Redis is down."""
    client = RedisClient(settings)
    try:
        yield client
    finally:
        await client.close()


async def get_redis(connection: HTTPConnection) -> RedisClient:
    """Give the process's Redis client to a route or to a dependency."""
    client: RedisClient = connection.state.redis
    return client


RedisDep = Annotated[RedisClient, Depends(get_redis)]
