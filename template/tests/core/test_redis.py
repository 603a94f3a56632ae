"""The Redis client and its breaker, against a server that is killed, hangs and comes back."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import anyio
import pytest
import redis
import trustme
from anyio.abc import ByteReceiveStream, ByteSendStream, ByteStream
from anyio.streams.tls import TLSListener
from prometheus_client import REGISTRY
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from app.core.redis import (
    RedisClient,
    RedisSettings,
    RedisUnavailableError,
    _telling,
    create_pool,
    open_redis,
)
from devtools.valkey import ValkeyServer

TlsUrl = Callable[[str, str], str]
Spoil = Callable[[redis.Redis, ValkeyServer], AbstractContextManager[None]]

TIMEOUT = 0.3
# What a busy machine needs beyond; less than the tests would take without any limit.
SLACK = 4.0
PATIENCE = 30.0


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


async def test_many_callers_share_a_small_pool(redis_url: str) -> None:
    settings = RedisSettings(
        REDIS_URL=SecretStr(redis_url), REDIS_TIMEOUT_SECONDS=30, REDIS_POOL_SIZE=1
    )
    async with open_redis(settings) as client:
        await asyncio.gather(*(client.call(write) for _ in range(100)))


async def test_that_all_connections_are_in_use_is_no_outage(redis_url: str) -> None:
    settings = RedisSettings(
        REDIS_URL=SecretStr(redis_url), REDIS_TIMEOUT_SECONDS=30, REDIS_POOL_SIZE=1
    )
    held, leave = asyncio.Event(), asyncio.Event()

    async def hold(client: Redis) -> None:
        async with client.client():
            held.set()
            await leave.wait()

    async with open_redis(settings) as client:
        holder = asyncio.create_task(client.call(hold))
        await held.wait()
        client._timeout = 0.05
        with capture_logs() as logs, pytest.raises(RedisUnavailableError):
            await client.call(write)
        client._timeout = 30
        assert client.is_available
        assert logs == []
        leave.set()
        await holder
        await client.call(write)


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


async def test_a_server_that_hangs_is_asked_all_the_time(
    private_client: RedisClient, private_redis: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has ended meanwhile is void as soon as it goes on, not after a break."""
    breaks: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        # Whatever else lives in this process sleeps, too.
        task = asyncio.current_task()
        if task and task.get_name() == "redis_recovery":
            breaks.append(seconds)
        await sleep(seconds)

    await private_client.call(write)
    private_redis.pause()
    monkeypatch.setattr(asyncio, "sleep", note)
    with pytest.raises(RedisUnavailableError):
        await private_client.call(write)
    # Time for some probes, each of which takes a timeout.
    await sleep(5 * TIMEOUT)
    monkeypatch.undo()
    private_redis.resume()
    await recovered(private_client)
    assert 0 < sum(breaks) <= 0.1


async def test_the_time_for_a_series_of_commands_is_limited_too(
    private_client: RedisClient,
) -> None:
    async def go_on(client: Redis) -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            await client.set("key", "value")

    # More than once, as a cancellation can be swallowed by chance.
    for _ in range(3):
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
    with pytest.raises(RedisUnavailableError):
        await private_client.ping()
    await anyio.sleep(0.3)
    assert not private_client.is_available
    await private_client.raw.replicaof("NO", "ONE")
    await recovered(private_client)


def _wait(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"after {PATIENCE:.0f} s: {otherwise}")
        time.sleep(0.01)


def _is_busy(admin: redis.Redis) -> bool:
    try:
        admin.ping()
    except ResponseError:
        return True
    return False


@contextmanager
def _too_few_replicas(admin: redis.Redis, _: ValkeyServer) -> Iterator[None]:
    admin.config_set("min-replicas-to-write", 1)
    yield
    admin.config_set("min-replicas-to-write", 0)


@contextmanager
def _no_memory_left(admin: redis.Redis, _: ValkeyServer) -> Iterator[None]:
    admin.config_set("maxmemory", 1)
    yield
    admin.config_set("maxmemory", 0)


@contextmanager
def _cannot_save(admin: redis.Redis, server: ValkeyServer) -> Iterator[None]:
    (server.data / "dump.rdb").mkdir()
    admin.config_set("save", "3600 1")
    admin.bgsave()
    _wait(lambda: _has_failed_to_save(admin), "it could save")
    yield
    admin.config_set("save", "")


def _has_failed_to_save(admin: redis.Redis) -> bool:
    # The type of this method differs between versions.
    persistence: Any = admin.info("persistence")
    return bool(persistence["rdb_last_bgsave_status"] != "ok")


@contextmanager
def _busy_with_a_script(admin: redis.Redis, server: ValkeyServer) -> Iterator[None]:
    def run_forever() -> None:
        with suppress(redis.RedisError), redis.Redis.from_url(server.server.url()) as other:
            other.eval("while true do end", 0)

    admin.config_set("busy-reply-threshold", 1)
    thread = Thread(target=run_forever, daemon=True)
    thread.start()
    try:
        _wait(lambda: _is_busy(admin), "the script did not keep it busy")
        yield
    finally:
        with suppress(ResponseError):
            admin.script_kill()
        thread.join(PATIENCE)


@pytest.mark.parametrize(
    "state",
    [_too_few_replicas, _no_memory_left, _cannot_save, _busy_with_a_script],
    ids=lambda state: state.__name__.strip("_"),
)
async def test_a_server_that_refuses_whatever_is_asked_is_an_outage(
    private_redis: ValkeyServer, private_client: RedisClient, state: Spoil
) -> None:
    script = private_client.raw.register_script("return redis.call('SET', KEYS[1], '1')")
    with redis.Redis.from_url(private_redis.server.url()) as admin:
        with state(admin, private_redis):
            with pytest.raises(RedisUnavailableError):
                await private_client.call(lambda _: script(["key"]))
            assert not private_client.is_available
        await recovered(private_client)
        await private_client.call(lambda _: script(["key"]))


async def test_a_server_before_redis_7_wraps_what_a_script_is_refused(
    private_client: RedisClient,
) -> None:
    async def fail(_: Redis) -> None:
        raise ResponseError(
            "Error running script (call to f_1): @user_script:1: @user_script: 1: -OOM command "
            "not allowed when used memory > 'maxmemory'."
        )

    with pytest.raises(RedisUnavailableError):
        await private_client.call(fail)


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
    user, password = "ada@b/c:d", "p@ss/w%rd#?:[]+ä"
    await private_client.raw.acl_setuser(
        user, enabled=True, passwords=[f"+{password}"], commands=["+set"], keys=["app:*"]
    )
    port = private_client.raw.connection_pool.connection_kwargs["port"]
    url = f"redis://{quote(user, safe='')}:{quote(password, safe='')}@127.0.0.1:{port}/0"
    async with open_redis(RedisSettings(REDIS_URL=SecretStr(url))) as client:
        await client.ping()


async def test_the_database_of_the_url_is_used(private_redis: ValkeyServer) -> None:
    server = private_redis.start()
    async with open_redis(RedisSettings(REDIS_URL=SecretStr(server.url(3)))) as client:
        await client.call(write)
    with redis.Redis.from_url(server.url()) as admin:
        assert admin.info("keyspace").keys() == {"db3"}


async def test_a_server_is_reached_through_its_socket(run_folder: Path) -> None:
    # The system allows such paths about a hundred characters.
    socket = run_folder / "redis.sock"
    listening = [f"unixsocket {socket}", "unixsocketperm 700"]
    server = ValkeyServer(run_folder / "valkey-socket", throwaway=True, options=listening)
    try:
        url = f"unix://:{server.start().password}@{socket}?db=2"
        async with open_redis(RedisSettings(REDIS_URL=SecretStr(url))) as client:
            await client.call(write)
            assert "db2" in await client.raw.info("keyspace")
    finally:
        server.kill()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def tls_url(private_redis: ValkeyServer, authority: trustme.CA) -> AsyncIterator[TlsUrl]:
    """The URLs of a server with a certificate for `localhost`.

    The wheel's server speaks no TLS, so this stands in front of it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server = private_redis.start()

    async def forward(client: ByteStream) -> None:
        async with (
            client,
            await anyio.connect_tcp("127.0.0.1", server.port) as plain,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(_pass_on, client, plain, tasks.cancel_scope)
            tasks.start_soon(_pass_on, plain, client, tasks.cancel_scope)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(TLSListener(listener, context, standard_compatible=False).serve, forward)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        yield lambda host, query: f"rediss://:{server.password}@{host}:{port}/0{query}"
        tasks.cancel_scope.cancel()


async def _pass_on(
    source: ByteReceiveStream, target: ByteSendStream, scope: anyio.CancelScope
) -> None:
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async for data in source:
            await target.send(data)
    scope.cancel()


@pytest.mark.parametrize(
    ("host", "query", "is_trusted"),
    [
        ("localhost", "?ssl_ca_certs={authority}", True),
        ("localhost", "", False),
        # The certificate is not for this name.
        ("127.0.0.1", "?ssl_ca_certs={authority}", False),
        ("127.0.0.1", "?ssl_cert_reqs=none", True),
    ],
    ids=["known", "unknown", "of another host", "unchecked"],
)
async def test_a_server_is_talked_to_only_with_a_certificate_to_be_trusted(
    tls_url: TlsUrl, authority: trustme.CA, host: str, query: str, is_trusted: bool
) -> None:
    with authority.cert_pem.tempfile() as file:
        await _talk(tls_url(host, query.format(authority=file)), is_trusted=is_trusted)


async def _talk(url: str, *, is_trusted: bool) -> None:
    settings = RedisSettings(REDIS_URL=SecretStr(url), REDIS_TIMEOUT_SECONDS=10)
    async with open_redis(settings) as client:
        if is_trusted:
            await client.call(write)
        else:
            with pytest.raises(RedisUnavailableError) as refused:
                await client.call(write)
            assert "CERTIFICATE_VERIFY_FAILED" in str(refused.value.__cause__)


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


async def test_what_began_before_an_outage_does_not_begin_another(redis_url: str) -> None:
    settings = RedisSettings(REDIS_URL=SecretStr(redis_url), REDIS_TIMEOUT_SECONDS=30)
    may_fail = asyncio.Event()

    async def fail(_: Redis) -> None:
        raise redis.ConnectionError

    async def fail_late(client: Redis) -> None:
        await may_fail.wait()
        await fail(client)

    async with open_redis(settings) as client:
        late = asyncio.create_task(client.call(fail_late))
        await asyncio.sleep(0)
        with pytest.raises(RedisUnavailableError):
            await client.call(fail)
        await recovered(client)
        may_fail.set()
        with pytest.raises(RedisUnavailableError):
            await late
        assert client.is_available


async def test_a_removal_that_is_cut_short_voids_all_that_is_cached(
    redis_client: RedisClient,
) -> None:
    async def generation(client: Redis) -> object:
        return await client.get(redis_client.generation_key)

    async def remove(_: Redis) -> None:
        await asyncio.sleep(30)

    await redis_client.raw.set(redis_client.generation_key, "before")
    removing = asyncio.create_task(redis_client.invalidate(remove))
    await asyncio.sleep(0)
    removing.cancel()
    await asyncio.wait([removing])
    assert await redis_client.call(generation) != b"before"


async def test_the_metrics_tell_whether_the_breaker_is_open(redis_url: str) -> None:
    async def fail(client: Redis) -> None:
        raise OSError("away")

    outages = REGISTRY.get_sample_value("redis_outages_total") or 0
    async with open_redis(RedisSettings(REDIS_URL=SecretStr(redis_url))) as client:
        with pytest.raises(RedisUnavailableError):
            await client.call(fail)
        assert REGISTRY.get_sample_value("redis_breaker_open") == 1
        await recovered(client)
    assert REGISTRY.get_sample_value("redis_breaker_open") == 0
    assert REGISTRY.get_sample_value("redis_outages_total") == outages + 1


async def test_what_uvloop_says_of_a_connection_that_has_ended_is_an_outage() -> None:
    class Ended:
        async def send_packed_command(self, _: bytes) -> None:
            raise RuntimeError("unable to perform operation on <...>; the handler is closed")

    with pytest.raises(RedisConnectionError):
        await _telling(Ended)().send_packed_command(b"")
