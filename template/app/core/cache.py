"""Cached answers: for one principal each, loaded once for all who wait, forgotten on change."""

import asyncio
import hashlib
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Generic, TypeVar
from urllib.parse import quote
from uuid import uuid4

import structlog
from fastapi import Depends
from prometheus_client import Counter
from pydantic import BaseModel, Field, ValidationError
from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from starlette.requests import HTTPConnection

from app.core.events import Event, EventBus
from app.core.redis import REDIS_ERRORS, RedisClient
from app.core.settings import Section

# How long others leave the loading of an entry to the one who began it.
_LEASE_SECONDS = 5.0
_WAIT_SECONDS = 1.0
_FIRST_POLL_SECONDS = 0.01
_LAST_POLL_SECONDS = 0.1
_TTL_JITTER = 0.1
# Of the schema's fingerprint, and of the generation, which is 32 hexadecimal digits.
_SCHEMA_LENGTH = 12
_HEAD = slice(1, 1 + _SCHEMA_LENGTH + 32)

# A key holds a value, or a lease: the right to load the value and to store it. Forgetting removes
# either. So whoever began to load before a change cannot store what they read: their lease is gone.
# Both carry the schema and the generation; what carries others is not there.
_GET_OR_LEASE: Final = """
local generation = redis.call('GET', KEYS[2])
if not generation then
    generation = ARGV[2]
    redis.call('SET', KEYS[2], generation)
end
local head = ARGV[1] .. generation
local entry = redis.call('GET', KEYS[1])
if entry and string.sub(entry, 2, #head + 1) == head then
    return entry
end
local lease = 'L' .. head .. ARGV[2]
redis.call('SET', KEYS[1], lease, 'PX', ARGV[3])
return lease
"""
_STORE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
"""
_RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('DEL', KEYS[1])
end
"""

_READS = Counter(
    "cache_reads",
    "Answers asked for: a hit, a miss, or bypassed as Redis is away.",
    ["space", "result"],
)

M = TypeVar("M", bound=BaseModel)
Load = Callable[[], Awaitable[M]]

logger = structlog.get_logger(__name__)


class CacheSettings(Section):
    """How long cached answers live."""

    CACHE_TTL_SECONDS: float = Field(
        default=60,
        gt=0,
        le=86_400,
        description="How long an entry lives at most: how old an answer may be if the process that "
        "changed the data died before it could say so.",
    )


@dataclass(frozen=True)
class CacheSpace(Generic[M]):
    """One kind of cached answers.

    Args:
        name: Unique within the service, such as `invoices`.
        model: What an entry is, stored as JSON. A deploy that changes it reads no older entries.
        ttl_seconds: How long an entry lives at most; `CACHE_TTL_SECONDS` when omitted.
    """

    name: str
    model: type[M]
    ttl_seconds: float | None = None

    def changed(self, owner_id: str, item_id: object) -> "CacheInvalidated":
        """The event that has an entry forgotten after the commit; to be recorded."""
        return CacheInvalidated(space=self.name, owner_id=owner_id, item_id=str(item_id))


class CacheInvalidated(Event):
    """What was cached for a principal is out of date as soon as the transaction commits."""

    name: ClassVar[str] = "cache.invalidated"

    space: str
    owner_id: str
    item_id: str


class _Lease(str):
    """The right to load and store an entry; what its key holds meanwhile."""

    __slots__ = ()


class Cache:
    """Cached answers in Redis, which every use can do without: then the database answers.

    A commit is followed by the removal of what it changed before its request is answered, so that
    a client reads its own writes. What was cached before an outage does not count after it, as
    nobody could remove it meanwhile: see `RedisClient`.

    Args:
        settings: How long entries live.
        redis: Where they are.
        events: Tells what has changed.
    """

    def __init__(self, settings: CacheSettings, redis: RedisClient, events: EventBus) -> None:
        self._ttl_seconds = settings.CACHE_TTL_SECONDS
        self._redis = redis
        self._get_or_lease = redis.raw.register_script(_GET_OR_LEASE)
        self._store = redis.raw.register_script(_STORE)
        self._release = redis.raw.register_script(_RELEASE)
        # By lease: what this process is loading; the result is None when that failed.
        self._loading: dict[str, asyncio.Future[Any]] = {}
        self._fingerprints: dict[CacheSpace[Any], str] = {}
        events.subscribe_after_commit(CacheInvalidated, self._on_invalidated)

    async def get_or_load(
        self, space: CacheSpace[M], owner_id: str, item_id: object, load: Load[M]
    ) -> M:
        """Return what is cached, or load and cache it.

        Of any number of callers in all processes one loads and the others wait for it, for a
        second at most. An error of `load` is not cached: those who wait then try one by one, and
        after their second all at once.

        Args:
            space: What kind of answer it is.
            owner_id: The principal whose answer it is; nobody else is given it.
            item_id: Which one of theirs.
            load: Reads it from the database. Its transaction must begin within this call, or it
                could store what a change since then has made out of date.

        Returns:
            A value that may be shared with other callers: do not change it.
        """
        key = self._key(space.name, owner_id, str(item_id))
        schema = self._fingerprint(space)
        try:
            found = await self._find(key, schema, space.model)
        except REDIS_ERRORS:
            _READS.labels(space.name, "bypassed").inc()
            return await load()
        except ValidationError:
            logger.warning("cache_entry_invalid", space=space.name)
            await self.forget(key)
            found = None
        is_hit = isinstance(found, space.model)
        _READS.labels(space.name, "hit" if is_hit else "miss").inc()
        if isinstance(found, _Lease):
            return await self._load(key, found, space, load)
        return await load() if found is None else found

    async def forget(self, key: str) -> None:
        """Remove an entry; if that fails, nothing that is cached counts any more."""

        async def remove(client: Redis) -> None:
            await client.unlink(key)

        await self._redis.invalidate(remove)

    async def _find(self, key: str, schema: str, model: type[M]) -> M | _Lease | None:
        name = uuid4().hex
        keys = [key, self._redis.generation_key]
        args: list[str | int] = [schema, name, int(_LEASE_SECONDS * 1000)]
        delay = _FIRST_POLL_SECONDS
        deadline = time.monotonic() + _WAIT_SECONDS
        while (remaining := deadline - time.monotonic()) > 0:
            found: bytes = await self._redis.call(lambda _: self._get_or_lease(keys, args))
            if found.startswith(b"V"):
                return model.model_validate_json(found[_HEAD.stop :])
            lease = _Lease(found.decode())
            if lease.endswith(name):
                return lease
            # The lease is alive at this moment: who loads under it began after the last change.
            if loading := self._loading.get(lease):
                # Unlike awaiting it, this does not cancel it for the others.
                await asyncio.wait([loading], timeout=remaining)
                value: M | None = loading.result() if loading.done() else None
                if value is not None:
                    return value
            else:
                await asyncio.sleep(delay * random.uniform(0.5, 1))
                delay = min(delay * 2, _LAST_POLL_SECONDS)
        return None

    async def _load(self, key: str, lease: _Lease, space: CacheSpace[M], load: Load[M]) -> M:
        loading = self._loading[lease] = asyncio.get_running_loop().create_future()
        value: M | None = None
        try:
            value = await load()
            ttl = space.ttl_seconds or self._ttl_seconds
            # Entries of one moment do not all end in one moment.
            ttl_milliseconds = max(1, int(ttl * 1000 * random.uniform(1 - _TTL_JITTER, 1)))
            entry = f"V{lease[_HEAD]}{value.model_dump_json()}"
            await self._attempt(self._store, key, lease, entry, ttl_milliseconds)
        except BaseException:
            await self._attempt(self._release, key, lease)
            raise
        finally:
            del self._loading[lease]
            loading.set_result(value)
        return value

    async def _attempt(self, script: AsyncScript, key: str, *args: str | int) -> None:
        try:
            await self._redis.call(lambda _: script([key], args))
        except REDIS_ERRORS as error:
            logger.debug("cache_not_written", error=type(error).__name__)

    async def _on_invalidated(self, event: CacheInvalidated) -> None:
        await self.forget(self._key(event.space, event.owner_id, event.item_id))

    def _key(self, space: str, owner_id: str, item_id: str) -> str:
        # Quoted, so that no owner's name can be read as another owner and an item.
        return self._redis.key("cache", space, quote(owner_id, safe=""), quote(item_id, safe=""))

    def _fingerprint(self, space: CacheSpace[Any]) -> str:
        known = self._fingerprints.get(space)
        if known is None:
            schema = json.dumps(space.model.model_json_schema(), sort_keys=True)
            digest = hashlib.sha256(schema.encode()).hexdigest()
            known = self._fingerprints[space] = digest[:_SCHEMA_LENGTH]
        return known


async def get_cache(connection: HTTPConnection) -> Cache:
    """Give the process's cache to a route or to a dependency."""
    cache: Cache = connection.state.cache
    return cache


CacheDep = Annotated[Cache, Depends(get_cache)]
