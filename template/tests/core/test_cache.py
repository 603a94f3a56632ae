"""Cached answers: loaded once, by one, for one principal, and never older than the last commit."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest
from prometheus_client import REGISTRY
from pydantic import BaseModel, SecretStr
from redis import Redis
from sqlalchemy import event, text

from app.core.background import BackgroundRunner
from app.core.cache import Cache, CacheInvalidated, CacheSettings, CacheSpace
from app.core.database import Database
from app.core.events import EventBus, record
from app.core.redis import RedisClient, RedisSettings, RedisUnavailableError, open_redis
from app.settings import Settings
from devtools.valkey import ValkeyServer


class Thing(BaseModel):
    """What is cached."""

    number: int


class OtherThing(BaseModel):
    """What it became in a later release."""

    number: int
    name: str = ""


THINGS = CacheSpace("things", Thing)
KEY = "app:cache:things:ada:1"

OpenCache = Callable[..., AbstractAsyncContextManager[Cache]]


class Source:
    """Where things come from; counts how often it is asked."""

    def __init__(
        self, number: int = 1, seconds: float = 0, until: asyncio.Event | None = None
    ) -> None:
        self.number = number
        self.seconds = seconds
        self.until = until
        self.loads = 0

    async def load(self) -> Thing:
        self.loads += 1
        number = self.number
        await asyncio.sleep(self.seconds)
        if self.until:
            await self.until.wait()
        return Thing(number=number)

    async def asked(self) -> None:
        with anyio.fail_after(20):
            while not self.loads:
                await anyio.sleep(0.005)


@pytest.fixture
def open_cache(redis_url: str, settings: Settings) -> OpenCache:
    """A cache as another process would have it: nothing but Redis is shared."""

    @asynccontextmanager
    async def run(
        url: str = redis_url, seconds: float = 10, connections: int = 10
    ) -> AsyncIterator[Cache]:
        own = RedisSettings(
            REDIS_URL=SecretStr(url),
            REDIS_TIMEOUT_SECONDS=seconds,
            REDIS_POOL_SIZE=connections,
        )
        async with open_redis(own) as client, BackgroundRunner(settings) as background:
            yield Cache(CacheSettings(), client, EventBus(background))

    return run


@pytest.fixture
async def cache(open_cache: OpenCache) -> AsyncIterator[Cache]:
    async with open_cache() as cache:
        yield cache


@pytest.fixture
async def redis(redis_client: RedisClient) -> RedisClient:
    return redis_client


async def get(cache: Cache, source: Source, owner: str = "ada", item: str = "1") -> int:
    return (await cache.get_or_load(THINGS, owner, item, source.load)).number


async def test_what_is_cached_is_not_loaded_again(cache: Cache) -> None:
    source = Source()
    assert [await get(cache, source) for _ in range(3)] == [1, 1, 1]
    assert source.loads == 1


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers wait for each other however slow the machine is."""
    monkeypatch.setattr("app.core.cache._WAIT_SECONDS", 30)
    monkeypatch.setattr("app.core.cache._LEASE_SECONDS", 60)


@pytest.mark.usefixtures("patience")
async def test_a_stampede_of_200_loads_once(cache: Cache) -> None:
    source = Source(seconds=0.2)
    assert set(await asyncio.gather(*(get(cache, source) for _ in range(200)))) == {1}
    assert source.loads == 1


@pytest.mark.usefixtures("patience")
async def test_a_stampede_on_two_processes_loads_once(open_cache: OpenCache) -> None:
    source = Source(seconds=0.2)
    async with open_cache() as one, open_cache() as other:
        caches = [one, other]
        await asyncio.gather(*(get(caches[n % 2], source) for n in range(200)))
    assert source.loads == 1


async def test_nobody_is_given_the_answer_of_another_principal(cache: Cache) -> None:
    # Pairs that would be one if the parts of a key were simply joined.
    pairs = [("a", "b:c"), ("a:b", "c"), ("a%3Ab", "c"), ("b", "c")]
    for number, (owner, item) in enumerate(pairs):
        assert await get(cache, Source(number), owner, item) == number


async def test_an_owner_cannot_be_read_as_another_kind_of_answer(cache: Cache) -> None:
    assert await get(cache, Source(1), "ada:bob") == 1
    others = CacheSpace("things:ada", Thing)
    assert (await cache.get_or_load(others, "bob", "1", Source(2).load)).number == 2


async def count_gets(cache: Cache) -> int:
    statistics = await cache._redis.raw.info("commandstats")
    return int(statistics.get("cmdstat_get", {"calls": 0})["calls"])


@pytest.mark.usefixtures("patience")
async def test_those_who_wait_for_their_own_process_need_redis_no_more(
    open_cache: OpenCache, private_redis: ValkeyServer
) -> None:
    loaded = asyncio.Event()
    source = Source(until=loaded)
    # With a single connection, whoever may count has no reader's answer still under way.
    async with open_cache(private_redis.start().url(), connections=1) as cache:
        readers = [asyncio.create_task(get(cache, source)) for _ in range(30)]
        with anyio.fail_after(20):
            # Each asks for the generation and for the entry.
            while await count_gets(cache) < 2 * len(readers):
                await anyio.sleep(0.01)
        private_redis.kill()
        loaded.set()
        await asyncio.gather(*readers)
    assert source.loads == 1


async def test_a_reader_does_not_store_what_a_writer_has_changed_meanwhile(cache: Cache) -> None:
    has_read = asyncio.Event()
    old, new = Source(1, until=has_read), Source(2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get, cache, old)
        await old.asked()
        # The writer commits and has the entry forgotten while the reader holds the old row.
        await cache.forget(KEY)
        # Nor does the next reader wait for the one who came too early.
        assert await get(cache, new) == 2
        has_read.set()
    assert await get(cache, new) == 2
    assert new.loads == 1


async def test_another_schema_does_not_read_the_entry(cache: Cache) -> None:
    async def load_other() -> OtherThing:
        return OtherThing(number=2, name="two")

    assert await get(cache, Source(1)) == 1
    later = CacheSpace("things", OtherThing)
    assert (await cache.get_or_load(later, "ada", "1", load_other)).name == "two"
    # An older process that is still running reads its own again; a change is one for both.
    assert await get(cache, Source(3)) == 3
    await cache.forget(KEY)
    assert await get(cache, Source(4)) == 4


@pytest.mark.usefixtures("patience")
async def test_an_error_is_not_cached_and_does_not_hold_up_the_others(cache: Cache) -> None:
    loading = asyncio.Event()

    async def fail() -> Thing:
        loading.set()
        await asyncio.sleep(0.1)
        raise LookupError

    first = asyncio.create_task(cache.get_or_load(THINGS, "ada", "1", fail))
    await loading.wait()
    start = time.monotonic()
    assert await get(cache, Source()) == 1
    assert time.monotonic() - start < 20
    with pytest.raises(LookupError):
        await first


@pytest.mark.usefixtures("patience")
async def test_a_reader_that_is_cancelled_leaves_the_work_to_the_next(cache: Cache) -> None:
    source = Source(seconds=60)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get, cache, source)
        await source.asked()
        tasks.cancel_scope.cancel()
    start = time.monotonic()
    assert await get(cache, Source(2)) == 2
    assert time.monotonic() - start < 20


async def test_a_process_that_died_while_loading_holds_nobody_up_for_long(
    open_cache: OpenCache, redis: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.cache._WAIT_SECONDS", 0.3)
    monkeypatch.setattr("app.core.cache._LEASE_SECONDS", 60)
    source = Source(seconds=60)
    async with open_cache() as other, open_cache() as cache:
        loading = asyncio.create_task(get(other, source))
        await source.asked()
        # Nor is it the end of caching: what it has left ends by itself.
        assert 0 < await redis.raw.pttl(KEY) <= 60_000
        start = time.monotonic()
        assert await get(cache, Source(2)) == 2
        assert 0.3 <= time.monotonic() - start < 20
        loading.cancel()
        await asyncio.wait([loading])


async def test_entries_end_at_different_moments_and_not_after_their_time(
    cache: Cache, redis: RedisClient
) -> None:
    for item in range(20):
        await get(cache, Source(), item=str(item))
    lives = [await redis.raw.pttl(f"app:cache:things:ada:{item}") for item in range(20)]
    assert max(lives) <= 60_000
    assert min(lives) > 50_000
    assert max(lives) - min(lives) > 500


async def test_an_entry_that_cannot_be_read_is_replaced(cache: Cache, redis: RedisClient) -> None:
    await get(cache, Source(1))
    entry = await redis.raw.get(KEY)
    assert isinstance(entry, bytes)
    await redis.raw.set(KEY, entry.replace(b"number", b"nothing"))
    assert await get(cache, Source(2)) == 2
    assert await get(cache, Source(3)) == 3


async def test_without_redis_everything_is_loaded(
    open_cache: OpenCache, private_redis: ValkeyServer
) -> None:
    source = Source()
    async with open_cache(private_redis.start().url(), seconds=0.5) as cache:
        private_redis.kill()
        start = time.monotonic()
        for _ in range(50):
            assert await get(cache, source) == 1
        assert time.monotonic() - start < 10
    assert source.loads == 50


async def test_what_changed_during_an_outage_is_forgotten_before_it_could_be_read(
    open_cache: OpenCache, private_redis: ValkeyServer
) -> None:
    url = private_redis.start().url()
    async with open_cache(url, seconds=0.5) as cache, open_cache(url) as other:
        assert await get(cache, Source(1)) == 1
        # The server does not die: it will still have the entry.
        private_redis.pause()
        assert await get(cache, Source(2)) == 2
        # Known to be away: the removal is not even sent.
        await cache.forget(KEY)
        private_redis.resume()
        with anyio.fail_after(15):
            while not cache._redis.is_available:
                assert await get(cache, Source(3)) == 3
                await anyio.sleep(0.02)
        # Nor by a process that knows nothing of the change.
        assert await get(other, Source(4)) == 4
        assert await get(cache, Source(5)) == 4


async def test_a_removal_that_redis_refuses_is_made_up_for(
    open_cache: OpenCache, private_redis: ValkeyServer
) -> None:
    server = private_redis.start()
    with Redis.from_url(server.url()) as admin:
        admin.acl_setuser("ada", enabled=True, nopass=True, categories=["+@all"], keys=["*"])
        async with open_cache(f"redis://ada:any@127.0.0.1:{server.port}/0") as cache:
            assert await get(cache, Source(1)) == 1
            admin.acl_setuser("ada", commands=["-unlink"])
            await cache.forget(KEY)
            # The entry is still there, and of a generation that does not count any more.
            assert await get(cache, Source(2)) == 2
            assert await get(cache, Source(3)) == 2


async def test_a_removal_that_is_cancelled_is_made_up_for(
    open_cache: OpenCache, private_redis: ValkeyServer
) -> None:
    async with open_cache(private_redis.start().url()) as cache:
        assert await get(cache, Source(1)) == 1
        private_redis.pause()
        removal = asyncio.create_task(cache.forget(KEY))
        await asyncio.sleep(0.05)
        removal.cancel()
        await asyncio.wait([removal])
        # As if it had not arrived.
        private_redis.kill()
        private_redis.start()
        private_redis.resume()
        assert await get(cache, Source(2)) == 2


async def test_a_change_while_earlier_ones_are_made_up_for_is_not_lost(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: Any) -> None:
        raise RedisUnavailableError

    async def change_meanwhile(*arguments: Any, **options: Any) -> None:
        monkeypatch.undo()
        await set_value(*arguments, **options)
        # Between the renewal and the end of the call: another removal fails.
        cache._redis._not_removed += 1

    set_value = cache._redis.raw.set
    assert await get(cache, Source(1)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(cache._redis, "call", refuse)
        await cache.forget(KEY)
    monkeypatch.setattr(cache._redis.raw, "set", change_meanwhile)
    assert await get(cache, Source(2)) == 2
    assert await get(cache, Source(3)) == 3
    assert await get(cache, Source(4)) == 3


async def test_further_connections_and_processes_are_no_outage(open_cache: OpenCache) -> None:
    async with open_cache() as cache, open_cache() as newcomer:
        assert await get(cache, Source(1)) == 1
        for it in (cache, newcomer):
            found = await asyncio.gather(*(get(it, Source(2)) for _ in range(10)))
            assert set(found) == {1}


@pytest.mark.usefixtures("patience")
async def test_what_nobody_could_remove_does_not_count_for_a_process_that_slept(
    open_cache: OpenCache, private_redis: ValkeyServer
) -> None:
    url = private_redis.start().url()
    async with open_cache(url) as idle:
        async with open_cache(url) as dying:
            assert await get(idle, Source(1)) == 1
            with Redis.from_url(url) as admin:
                admin.save()
            private_redis.kill()
            await dying.forget(KEY)
        private_redis.start()
        # All at once: some of them on connections that there were not before.
        source = Source(3)
        found = await asyncio.gather(*(get(idle, source) for _ in range(10)))

    assert set(found) == {3}
    assert source.loads == 1


async def test_a_commit_is_read_by_whoever_asks_after_it(
    database: Database, lifespan_state: dict[str, Cache]
) -> None:
    cache = lifespan_state["cache"]
    await get(cache, Source(1))

    with pytest.raises(LookupError):
        async with database.transaction() as session:
            record(session, THINGS.changed("ada", 1))
            raise LookupError
    assert await get(cache, Source(2)) == 1

    async with database.transaction() as session:
        record(session, THINGS.changed("ada", 1))
        # Not before the commit: others would only cache the old row again.
        assert await get(cache, Source(3)) == 1
    assert await get(cache, Source(4)) == 4


async def test_the_removal_follows_the_commit(
    database: Database, lifespan_state: dict[str, Any]
) -> None:
    # In between, a reader would store the old row again, for good.
    order: list[str] = []

    async def note(_: CacheInvalidated) -> None:
        order.append("removed")

    lifespan_state["events"].subscribe_after_commit(CacheInvalidated, note)
    async with database.transaction() as session:
        await session.execute(text("SELECT 1"))
        event.listen(session.sync_session, "after_commit", lambda _: order.append("committed"))
        record(session, THINGS.changed("ada", 1))
    assert order == ["committed", "removed"]


async def test_hits_and_misses_are_counted(open_cache: OpenCache) -> None:
    def counted() -> list[float]:
        results = ("hit", "miss")
        labels = [{"space": "things", "result": result} for result in results]
        return [REGISTRY.get_sample_value("cache_reads_total", each) or 0 for each in labels]

    before = counted()
    source = Source()
    async with open_cache() as cache:
        for _ in range(3):
            await cache.get_or_load(THINGS, "ada", 1, source.load)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [2, 1]
