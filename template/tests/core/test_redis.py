"""The Redis client and its breaker, against a server that is killed, hangs and comes back."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from urllib.parse import quote

import anyio
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from app.core.redis import (
    RedisClient,
    RedisSettings,
    RedisUnavailableError,
    create_pool,
    open_redis,
)
from devtools.valkey import ValkeyServer

TIMEOUT = 0.3
# What a busy machine needs beyond.
SLACK = 1.0


async def write(client: Redis) -> None:
    await client.set("key", "value")


async def recovered(client: RedisClient) -> None:
    with anyio.fail_after(15):
        while not client.is_available:
            await anyio.sleep(0.02)


@pytest.fixture
async def private_client(private_redis: ValkeyServer) -> AsyncIterator[RedisClient]:
    """A client with one connection to a server that the test may kill."""
    url = private_redis.start().url()
    settings = RedisSettings(
        REDIS_URL=SecretStr(url), REDIS_TIMEOUT_SECONDS=TIMEOUT, REDIS_POOL_SIZE=1
    )
    async with open_redis(settings) as client:
        yield client


async def test_many_callers_share_a_small_pool(private_client: RedisClient) -> None:
    await asyncio.gather(*(private_client.call(write) for _ in range(100)))


async def test_a_restart_between_two_uses_goes_unnoticed(
    private_client: RedisClient, private_redis: ValkeyServer
) -> None:
    await private_client.call(write)
    private_redis.kill()
    private_redis.start()
    with capture_logs() as logs:
        await private_client.call(write)
    assert logs == []


async def test_an_outage_is_noticed_once_and_costs_nothing_from_then_on(
    private_client: RedisClient, private_redis: ValkeyServer
) -> None:
    private_redis.kill()
    with capture_logs() as logs:
        with pytest.raises(RedisUnavailableError):
            await private_client.call(write)
        start = time.monotonic()
        for _ in range(1000):
            with pytest.raises(RedisUnavailableError):
                await private_client.call(write)
        assert time.monotonic() - start < SLACK
        private_redis.start()
        await recovered(private_client)
        await private_client.call(write)
    assert [line["event"] for line in logs] == ["redis_unavailable", "redis_recovered"]


async def test_a_server_that_hangs_costs_one_timeout(
    private_client: RedisClient, private_redis: ValkeyServer
) -> None:
    await private_client.call(write)
    private_redis.pause()
    start = time.monotonic()
    results = await asyncio.gather(
        *(private_client.call(write) for _ in range(20)), return_exceptions=True
    )
    assert {type(result) for result in results} == {RedisUnavailableError}
    assert time.monotonic() - start < TIMEOUT + SLACK
    private_redis.resume()
    await recovered(private_client)
    await private_client.call(write)


async def test_the_time_for_a_series_of_commands_is_limited_too(
    private_client: RedisClient,
) -> None:
    async def go_on(client: Redis) -> None:
        until = time.monotonic() + 5
        while time.monotonic() < until:
            await client.set("key", "value")

    # More than once, as a cancellation can be swallowed by chance.
    for _ in range(6):
        start = time.monotonic()
        with pytest.raises(RedisUnavailableError):
            await private_client.call(go_on)
        assert time.monotonic() - start < TIMEOUT + SLACK
        await recovered(private_client)


async def test_callers_that_give_up_leave_the_pool_whole(
    private_client: RedisClient, private_redis: ValkeyServer
) -> None:
    await private_client.call(write)
    private_redis.pause()
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(_give_up, private_client)
    private_redis.resume()
    await recovered(private_client)
    # The pool's only connection is still there.
    await private_client.call(write)


async def _give_up(client: RedisClient) -> None:
    with anyio.move_on_after(0.05), suppress(RedisUnavailableError):
        await client.call(write)


async def test_a_wrong_command_is_no_outage(private_client: RedisClient) -> None:
    async def wrong(client: Redis) -> None:
        await client.set("key", "value")
        await client.incr("key")

    with pytest.raises(ResponseError):
        await private_client.call(wrong)
    assert private_client.is_available


async def test_a_server_that_takes_no_writes_is_an_outage(private_client: RedisClient) -> None:
    async def become_replica(client: Redis) -> None:
        await client.replicaof("127.0.0.1", "1")

    await private_client.call(become_replica)
    with pytest.raises(RedisUnavailableError):
        await private_client.call(write)
    await private_client.ping()
    await anyio.sleep(0.3)
    assert not private_client.is_available
    await private_client.raw.replicaof("NO", "ONE")
    await recovered(private_client)


async def test_what_was_missed_is_made_up_for_before_anyone_else_uses_the_server(
    private_client: RedisClient, private_redis: ValkeyServer
) -> None:
    seen: list[bool] = []

    async def make_up(_: Redis) -> None:
        seen.append(private_client.is_available)

    private_client.on_recovery(make_up)
    private_redis.kill()
    with pytest.raises(RedisUnavailableError):
        await private_client.call(write)
    private_redis.start()
    await recovered(private_client)
    assert seen == [False]


async def test_the_client_can_be_closed_during_an_outage(
    private_client: RedisClient, private_redis: ValkeyServer
) -> None:
    private_redis.kill()
    with pytest.raises(RedisUnavailableError):
        await private_client.call(write)
    await private_client.close()


async def test_a_closed_client_opens_no_connection(private_client: RedisClient) -> None:
    await private_client.close()
    with pytest.raises(RedisUnavailableError):
        await private_client.call(write)


async def test_a_wrong_password_is_an_outage_that_does_not_show_it(
    private_redis: ValkeyServer,
) -> None:
    server = private_redis.start()
    url = f"redis://:hunter2@127.0.0.1:{server.port}/0"
    with capture_logs() as logs:
        async with open_redis(RedisSettings(REDIS_URL=SecretStr(url))) as client:
            with pytest.raises(RedisUnavailableError):
                await client.call(write)
            assert "hunter2" not in repr(client.raw)
    assert "hunter2" not in str(logs)


async def test_a_user_with_a_percent_encoded_password_is_let_in(
    private_client: RedisClient,
) -> None:
    password = "p@ss/w%rd#?:"
    await private_client.raw.acl_setuser(
        "ada", enabled=True, passwords=[f"+{password}"], commands=["+ping"]
    )
    port = private_client.raw.connection_pool.connection_kwargs["port"]
    url = f"redis://ada:{quote(password, safe='')}@127.0.0.1:{port}/0"
    async with open_redis(RedisSettings(REDIS_URL=SecretStr(url))) as client:
        await client.ping()


@pytest.mark.parametrize(
    ("query", "checked"),
    [("", True), ("?ssl_cert_reqs=required", True), ("?ssl_cert_reqs=none", False)],
)
def test_tls_checks_whom_it_talks_to(query: str, checked: bool) -> None:
    url = f"rediss://host:6380/0{query}"
    pool = create_pool(RedisSettings(REDIS_URL=SecretStr(url)))
    connection = pool.connection_class(**pool.connection_kwargs)
    assert isinstance(connection, SSLConnection)
    assert connection.check_hostname is checked


async def test_the_pool_of_a_socket_can_be_made() -> None:
    settings = RedisSettings(REDIS_URL=SecretStr("unix:///nowhere/redis.sock?db=1"))
    async with open_redis(settings) as client:
        with pytest.raises(RedisUnavailableError):
            await client.call(write)
