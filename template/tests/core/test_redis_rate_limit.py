"""Rate limits in Redis: exact, shared, honest about the wait, and what becomes of them without."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from app.core.errors import ServiceUnavailableError
from app.core.rate_limit import RateLimit
from app.core.redis import RedisClient, RedisSettings, open_redis
from app.core.redis_rate_limit import OnRedisOutage, RedisRateLimiter, RedisRateLimitSettings
from app.settings import Settings
from devtools.valkey import ValkeyServer
from tests.fixtures.application import Connect, MakeApp
from tests.fixtures.server import Serve, ServedProcess

KEY = "app:rate-limit:key"


def limiter_of(client: RedisClient, mode: OnRedisOutage = OnRedisOutage.LOCAL) -> RedisRateLimiter:
    return RedisRateLimiter(RedisRateLimitSettings(RATE_LIMIT_ON_REDIS_OUTAGE=mode), client)


async def ask(client: RedisClient, command: str, *arguments: str) -> Any:
    """Run a command on the key; the types of the client's own methods differ between versions."""
    script = client.raw.register_script("return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))")
    return await script([KEY], [command, *arguments])


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[RedisClient]:
    settings = RedisSettings(REDIS_URL=SecretStr(redis_url), REDIS_TIMEOUT_SECONDS=10)
    async with open_redis(settings) as client:
        yield client


@pytest.fixture
def limiter(client: RedisClient) -> RedisRateLimiter:
    return limiter_of(client)


async def test_exactly_the_limit_of_many_concurrent_requests_passes(
    limiter: RedisRateLimiter, settings: Settings
) -> None:
    limit = RateLimit(10, 60)
    async with open_redis(settings.model_copy(update={"REDIS_KEY_PREFIX": "app"})) as other:
        limiters = [limiter, limiter_of(other)]
        decisions = await asyncio.gather(*(limiters[n % 2].hit("key", limit) for n in range(100)))
    assert sum(decision.allowed for decision in decisions) == 10
    assert sorted(d.remaining for d in decisions if d.allowed) == list(range(10))


async def test_a_steady_rate_just_below_the_limit_is_never_refused(
    limiter: RedisRateLimiter,
) -> None:
    # Each waits for the one before, so that on a busy machine they come later, never closer.
    for _ in range(15):
        assert (await limiter.hit("key", RateLimit(4, 0.12))).allowed
        await asyncio.sleep(0.031)


async def test_waiting_as_long_as_told_is_enough(limiter: RedisRateLimiter) -> None:
    limit = RateLimit(2, 0.5)
    while (refused := await limiter.hit("key", limit)).allowed:
        pass
    assert refused.remaining == 0
    assert 0 < refused.reset_after_seconds <= 0.5
    # The event loop can end a wait a millisecond early.
    await asyncio.sleep(refused.reset_after_seconds + 0.01)
    assert (await limiter.hit("key", limit)).allowed


async def test_refused_requests_neither_count_nor_take_memory(
    limiter: RedisRateLimiter, client: RedisClient
) -> None:
    limit = RateLimit(5, 60)
    first = await limiter.hit("key", limit)
    assert first == (True, 5, 4, 60)
    for _ in range(50):
        last = await limiter.hit("key", limit)
    assert not last.allowed
    assert 50 < last.reset_after_seconds < 60
    assert await ask(client, "LLEN") == 5
    assert 50_000 < await client.raw.pttl(KEY) <= 60_000


async def test_what_is_forgotten_counts_nowhere(
    limiter: RedisRateLimiter, client: RedisClient
) -> None:
    for key in ("key", "key", "another"):
        await limiter.hit(key, RateLimit(2, 60))
    await limiter.forget("key")
    assert await ask(client, "EXISTS") == 0
    assert (await limiter.hit("another", RateLimit(2, 60))).remaining == 0


@pytest.mark.parametrize("expired", [0, 1, 2, 3, 7, 50, 99, 100])
async def test_only_what_is_older_than_the_window_is_dropped(
    limiter: RedisRateLimiter, client: RedisClient, expired: int
) -> None:
    seconds, microseconds = await client.raw.time()
    now = seconds * 1_000_000 + microseconds
    times = [now - 200_000_000 + n for n in range(expired)]
    times += [now - 50_000_000 + n for n in range(100 - expired)]
    await ask(client, "RPUSH", *map(str, times))
    decision = await limiter.hit("key", RateLimit(200, 100))
    assert decision.remaining == 200 - (100 - expired) - 1
    if expired < 100:
        assert decision.reset_after_seconds == pytest.approx(50, abs=5)


async def test_a_server_clock_that_goes_back_refuses_nobody_for_long(
    limiter: RedisRateLimiter, client: RedisClient
) -> None:
    seconds, _ = await client.raw.time()
    await ask(client, "RPUSH", str((seconds + 3600) * 1_000_000))
    decisions = [await limiter.hit("key", RateLimit(2, 60)) for _ in range(2)]
    assert [decision.allowed for decision in decisions] == [True, False]
    assert decisions[1].reset_after_seconds <= 60


async def test_a_server_clock_that_goes_back_keeps_nobody_out_for_longer_than_the_window(
    limiter: RedisRateLimiter, client: RedisClient
) -> None:
    # The limit was used up, then the clock was set back by an hour.
    seconds, _ = await client.raw.time()
    await ask(client, "RPUSH", *[str((seconds + 3600) * 1_000_000)] * 2)
    await client.raw.pexpire(KEY, 3_660_000)
    assert not (await limiter.hit("key", RateLimit(2, 60))).allowed
    first = await client.raw.pttl(KEY)
    assert first <= 60_000
    await asyncio.sleep(0.02)
    # Refused ones do not prolong it.
    assert not (await limiter.hit("key", RateLimit(2, 60))).allowed
    assert await client.raw.pttl(KEY) < first


async def test_a_server_that_has_forgotten_the_script_is_taught_again(
    limiter: RedisRateLimiter, client: RedisClient
) -> None:
    await limiter.hit("key", RateLimit(2, 60))
    await client.raw.script_flush()
    assert (await limiter.hit("key", RateLimit(2, 60))).remaining == 0


@pytest.fixture
async def private_client(private_redis: ValkeyServer) -> AsyncIterator[RedisClient]:
    url = private_redis.start().url()
    settings = RedisSettings(REDIS_URL=SecretStr(url), REDIS_TIMEOUT_SECONDS=10)
    async with open_redis(settings) as client:
        yield client


async def recovered(client: RedisClient) -> None:
    with anyio.fail_after(15):
        while not client.is_available:
            await anyio.sleep(0.02)


async def test_without_redis_each_process_counts_for_itself_and_says_so_once(
    private_client: RedisClient, private_redis: ValkeyServer
) -> None:
    limiter = limiter_of(private_client)
    limit = RateLimit(3, 60)
    with capture_logs() as logs:
        await limiter.hit("key", limit)
        private_redis.kill()
        allowed = [(await limiter.hit("key", limit)).allowed for _ in range(50)]
        assert allowed == [True] * 3 + [False] * 47
        private_redis.start()
        await recovered(private_client)
        assert (await limiter.hit("key", limit)).remaining == 2
    events = [line["event"] for line in logs]
    assert sorted(events) == sorted(
        [
            "redis_unavailable",
            "rate_limits_not_shared",
            "redis_recovered",
            "rate_limits_shared_again",
        ]
    )


async def test_without_redis_nobody_is_limited_when_the_setting_says_open(
    private_client: RedisClient, private_redis: ValkeyServer
) -> None:
    limiter = limiter_of(private_client, OnRedisOutage.OPEN)
    private_redis.kill()
    decisions = [await limiter.hit("key", RateLimit(3, 60)) for _ in range(10)]
    assert all(decision.allowed for decision in decisions)


async def test_without_redis_what_must_hold_is_limited_when_the_setting_says_open(
    private_client: RedisClient, private_redis: ValkeyServer
) -> None:
    limiter = limiter_of(private_client, OnRedisOutage.OPEN)
    private_redis.kill()
    limit = RateLimit(3, 60, holds_in_outage=True)
    decisions = [await limiter.hit("key", limit) for _ in range(5)]
    assert [decision.allowed for decision in decisions] == [True] * 3 + [False] * 2


async def test_without_redis_nobody_passes_when_the_setting_says_closed(
    private_client: RedisClient, private_redis: ValkeyServer
) -> None:
    limiter = limiter_of(private_client, OnRedisOutage.CLOSED)
    private_redis.kill()
    for _ in range(3):
        with pytest.raises(ServiceUnavailableError) as refused:
            await limiter.hit("key", RateLimit(3, 60))
        assert refused.value.headers == {"Retry-After": "1"}


APP = "tests.limited_service:create_app"
PATH = "/api/v1/sample/limited"


async def test_exactly_the_limit_passes_through_two_processes(serve: Serve) -> None:
    # Patience with a busy machine: after a timeout each process would count for itself.
    env = {"RATE_LIMIT_REQUESTS": "10", "RATE_LIMIT_WINDOW_SECONDS": "600"}
    env["REDIS_TIMEOUT_SECONDS"] = "10"
    async with (
        serve(env=env, app=APP) as one,
        serve(env=env, app=APP) as other,
        httpx2.AsyncClient(timeout=30) as client,
    ):
        urls = [f"{one.url}{PATH}", f"{other.url}{PATH}"]
        answers = await asyncio.gather(*(client.get(urls[n % 2]) for n in range(100)))
    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [429] * 90
    for answer in answers:
        if answer.status_code == 429:
            assert answer.headers["Retry-After"] == answer.headers["RateLimit-Reset"]
            assert 500 <= int(answer.headers["Retry-After"]) <= 600


async def test_an_outage_of_redis_costs_no_answer_and_little_time(
    serve: Serve, private_redis: ValkeyServer
) -> None:
    env = {
        "REDIS_URL": private_redis.start().url(),
        "REDIS_TIMEOUT_SECONDS": "2",
        "HEALTH_CACHE_SECONDS": "0",
    }
    # Not even the start needs it.
    private_redis.kill()
    async with (
        serve(env=env, app=APP) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=30) as client,
    ):
        await _serves(client, redis="failed")
        private_redis.start()
        await _recovers(server, outages=1)
        await _serves(client, redis="ok")
        # Worse than a dead server: one that takes connections and never answers.
        private_redis.pause()
        await _serves(client, redis="failed")
        private_redis.resume()
        await _recovers(server, outages=2)
        await _serves(client, redis="ok")
        private_redis.kill()
        await _serves(client, redis="failed")
    assert server.logs().count("rate_limits_not_shared") == 3


@pytest.mark.parametrize("required", [False, True])
async def test_readiness_fails_with_redis_only_where_it_is_required(
    make_app: MakeApp, connect: Connect, private_redis: ValkeyServer, required: bool
) -> None:
    url = private_redis.start().url()
    settings = {"REDIS_REQUIRED": True} if required else {}
    app = make_app(REDIS_URL=url, HEALTH_CACHE_SECONDS=0, **settings)
    async with connect(app) as client:
        assert (await client.get("/health/ready")).json()["checks"]["redis"] == "ok"
        private_redis.kill()
        answer = await client.get("/health/ready")
    assert answer.status_code == (503 if required else 200)
    assert answer.json()["status"] == ("unavailable" if required else "ready")
    assert answer.json()["checks"]["redis"] == "failed"


async def test_a_redis_that_hangs_holds_up_one_probe_and_not_each(
    make_app: MakeApp, connect: Connect, private_redis: ValkeyServer
) -> None:
    url = private_redis.start().url()
    app = make_app(REDIS_URL=url, HEALTH_CACHE_SECONDS=0, REDIS_TIMEOUT_SECONDS=0.3)
    async with connect(app) as client:
        private_redis.pause()
        begun = time.monotonic()
        for _ in range(20):
            answer = await client.get("/health/ready")
            assert answer.json()["checks"]["redis"] == "failed"
        # If each had to find out, it would be six seconds.
        assert time.monotonic() - begun < 4
        private_redis.resume()


async def _serves(client: httpx2.AsyncClient, *, redis: str) -> None:
    start = time.monotonic()
    for _ in range(50):
        assert (await client.get(PATH)).status_code == 200
    # If not only the first one had to find out, it would be two seconds for each.
    assert time.monotonic() - start < 15
    readiness = await client.get("/health/ready")
    assert readiness.status_code == 200
    assert readiness.json()["checks"]["redis"] == redis


async def _recovers(server: ServedProcess, outages: int) -> None:
    with anyio.fail_after(15):
        while server.logs().count("redis_recovered") < outages:
            await anyio.sleep(0.05)
