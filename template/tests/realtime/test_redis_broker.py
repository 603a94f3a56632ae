"""Several processes: what one publishes arrives at the clients of all, once and in order."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from structlog.testing import capture_logs

from app.core.channels import Channel
from app.core.redis import RedisSettings, open_redis
from app.realtime.hub import Hub
from app.realtime.limits import RealtimeSettings
from app.realtime.redis_broker import RedisBroker, open_broker
from devtools.valkey import ValkeyServer
from tests.fixtures.caller import Caller
from tests.fixtures.server import ServedProcess
from tests.realtime.client import PATIENCE_SECONDS, Client, open_client
from tests.realtime.conftest import ServeChannels, publish

# Short, so that processes soon look whether Redis is back.
ENV = {"REDIS_TIMEOUT_SECONDS": "0.5"}
MESSAGES = 300
NEWS = Channel("news", messages=())


class Hearer:
    """Notes what it hears."""

    def __init__(self, *errors: Exception) -> None:
        self.heard: list[str] = []
        self._errors = list(errors)

    def offer(self, channel: Channel, frame: str) -> None:
        if self._errors:
            raise self._errors.pop()
        self.heard.append(frame)

    async def hears(self, frame: str) -> None:
        """Wait for it."""
        with anyio.fail_after(PATIENCE_SECONDS):
            while frame not in self.heard:
                await anyio.sleep(0.02)


@pytest.fixture
def prefix() -> str:
    """A prefix of this test's own: Pub/Sub knows no databases."""
    return f"test-{uuid4().hex[:8]}"


async def test_every_client_of_every_process_hears_everything_once_and_in_order(
    serve_channels: ServeChannels, caller: Caller, redis_url: str, prefix: str
) -> None:
    async with AsyncExitStack() as stack:
        env = {"REDIS_KEY_PREFIX": prefix, "REALTIME_QUEUE_SIZE": "1000"}
        servers = [await stack.enter_async_context(serve_channels(env=env)) for _ in range(2)]
        redis = await stack.enter_async_context(Redis.from_url(redis_url))
        clients = [
            await stack.enter_async_context(open_client(server, caller.headers))
            for server in (*servers, servers[1])
        ]
        # Only of what somebody here listens to.
        assert await _topics(redis, prefix) == set()
        for client in clients:
            await client.subscribe("news")
        await clients[0].subscribe("letters")
        # Which Pub/Sub itself does not tell apart.
        database = redis.connection_pool.connection_kwargs.get("db") or 0
        name = f"{prefix}:realtime:{database}:letters:{caller.id}"
        assert await _topics(redis, prefix) == {f"{prefix}:realtime:{database}:news", name}

        async with anyio.create_task_group() as tasks:
            # The length of a note's text says which process it is from.
            for length, server in enumerate(servers, start=1):
                tasks.start_soon(_publish, server, length)
        for client in clients:
            frames = [await client.receive() for _ in range(2 * MESSAGES)]
            for length in (1, 2):
                numbers = [
                    frame["data"]["number"]
                    for frame in frames
                    if len(frame["data"]["text"]) == length
                ]
                assert numbers == list(range(MESSAGES))
        # To the same user in another process, and not a second time in the own one.
        await publish(servers[1], "letters", to=caller.id)
        assert (await clients[0].receive())["channel"] == "letters"
        for client in clients:
            assert await client.ask(type="ping") == {"type": "pong"}
            await client.ask(type="unsubscribe", channel="news")
        with anyio.fail_after(PATIENCE_SECONDS):
            while await _topics(redis, prefix) != {name}:
                await anyio.sleep(0.02)
        await clients[1].subscribe("news")
        await publish(servers[0], "news")
        assert (await clients[1].receive())["event"] == "note"


async def test_delivery_resumes_by_itself_after_an_outage(
    serve_channels: ServeChannels, caller: Caller, private_redis: ValkeyServer
) -> None:
    env = {**ENV, "REDIS_URL": private_redis.start().url()}
    async with (
        serve_channels(env=env) as here,
        serve_channels(env=env) as there,
        open_client(here, caller.headers) as client,
    ):
        await client.subscribe("news")
        await publish(there, "news")
        assert (await client.receive())["event"] == "note"

        private_redis.kill()
        # Within a process it goes on.
        await publish(here, "news")
        assert (await client.receive())["event"] == "note"
        await publish(there, "news")
        # Whoever subscribes meanwhile is heard when Redis is back.
        await client.subscribe("ticker")
        private_redis.start()
        await _arrives(there, "news", client)
        await _arrives(there, "ticker", client)
        assert "Traceback" not in here.logs() + there.logs()


async def test_a_connection_that_breaks_has_nothing_sent_twice(private_redis: ValkeyServer) -> None:
    server = private_redis.start()
    hearer = Hearer()
    async with _hub(server.url()) as (there, _), _cut_once(server.url()) as url, _hub(url) as here:
        await there.listen(NEWS, "news", hearer)
        for frame in "abc":
            here[1].publish("news", frame)
        # Some of that may be lost; what comes after Redis is found to be well is not.
        await _says_until_heard(here[1], hearer, "d")
    heard = [frame for frame in hearer.heard if frame != "d"]
    assert heard == list("abc")[: len(heard)]


async def test_nothing_ends_the_reader_for_good(
    private_redis: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = private_redis.start().url()
    hearer = Hearer()
    closings: list[PubSub] = []
    # The first of them goes together with the end of the connection.
    faults = [ValueError("of another release") for _ in range(2)]

    async def fail_once(self: PubSub) -> None:
        # As redis-py 5 does without giving the connection back.
        closings.append(self)
        if len(closings) == 1:
            raise TimeoutError
        await close(self)

    def deliver(topic: str, frame: str) -> None:
        if faults:
            raise faults.pop()
        Hub.deliver(here[0], topic, frame)

    close: Any = PubSub.aclose
    monkeypatch.setattr(PubSub, "aclose", fail_once)
    async with _hub(url) as here, _hub(url) as there:
        monkeypatch.setattr(here[0], "deliver", deliver)
        await here[0].listen(NEWS, "news", hearer)
        await _says_until_heard(there[1], hearer, "a")
        assert closings
        await close(closings[0])


async def test_a_server_that_refuses_is_asked_now_and_then(private_redis: ValkeyServer) -> None:
    url = private_redis.start().url()
    hearer = Hearer()
    client: Any = Redis.from_url(url)
    async with client as redis:
        await redis.execute_command("ACL", "SETUSER", "default", "resetchannels")
        with capture_logs() as logs:
            async with _hub(url) as here, _hub(url) as there:
                await here[0].listen(NEWS, "news", hearer)
                before = (await redis.info("stats"))["total_connections_received"]
                with anyio.fail_after(PATIENCE_SECONDS):
                    while (await redis.info("stats"))["total_connections_received"] < before + 5:
                        await anyio.sleep(0.05)
                complaints = [
                    line for line in logs if line["event"] == "realtime_reader_disconnected"
                ]
                assert len(complaints) == 1
                await redis.execute_command("ACL", "SETUSER", "default", "allchannels")
                await _says_until_heard(there[1], hearer, "a")


async def test_who_gives_up_a_subscription_leaves_it_to_those_who_wait_for_it(
    private_redis: ValkeyServer,
) -> None:
    url = private_redis.start().url()
    async with _hub(url) as (hub, broker), Redis.from_url(url) as redis:
        await hub.listen(NEWS, "before", Hearer())
        impatient = anyio.CancelScope()

        async def give_up() -> None:
            with impatient:
                await hub.listen(NEWS, "news", Hearer())

        # Somebody else's wish is on its way.
        await broker._asking.acquire()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(give_up)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(hub.listen, NEWS, "news", Hearer())
            impatient.cancel()
            await anyio.wait_all_tasks_blocked()
            broker._asking.release()
            with anyio.fail_after(PATIENCE_SECONDS):
                while not (await redis.pubsub_numsub(f"{broker._prefix}news"))[0][1]:
                    await anyio.sleep(0.02)


async def test_who_comes_while_somebody_leaves_is_heard_and_told_so(
    private_redis: ValkeyServer,
) -> None:
    url = private_redis.start().url()
    topics = ["news", "weather"]
    leaving, coming = Hearer(), Hearer()
    async with _hub(url) as (hub, broker), _hub(url) as (_, other):
        for topic in topics:
            await hub.listen(NEWS, topic, leaving)
        await broker._asking.acquire()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub._leave, topics, leaving)
            await anyio.wait_all_tasks_blocked()
            for topic in topics:
                # What is about to be given up, and what is still subscribed to.
                tasks.start_soon(hub.listen, NEWS, topic, coming)
            await anyio.wait_all_tasks_blocked()
            broker._asking.release()
        for topic in topics:
            assert broker._topics[topic].is_set(), topic
            other.publish(topic, topic)
            await coming.hears(topic)


async def test_what_somebody_gave_up_asking_for_is_asked_for_all_the_same(
    private_redis: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.realtime.redis_broker._CONFIRM_SECONDS", 0.1)
    monkeypatch.setattr("app.realtime.redis_broker._SILENCE_SECONDS", 0.5)
    url = private_redis.start().url()
    hearer = Hearer()
    async with _hub(url) as (hub, broker), _hub(url) as (_, other):
        await hub.listen(NEWS, "before", Hearer())
        # Somebody else's wish takes longer than anybody waits.
        await broker._asking.acquire()
        await hub.listen(NEWS, "news", hearer)
        broker._asking.release()
        await _says_until_heard(other, hearer, "a")


async def test_a_server_that_accepts_and_says_nothing_is_given_up(
    private_redis: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.realtime.redis_broker._CONNECT_SECONDS", 0.2)
    url = private_redis.start().url()
    hearer = Hearer()
    with capture_logs() as logs:
        async with _frozen(url) as (frozen, thaw), _hub(frozen) as here, _hub(url) as there:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(here[0].listen, NEWS, "news", hearer)
                await anyio.sleep(1)
                thaw.set()
            await _says_until_heard(there[1], hearer, "a")
    assert [line["event"] for line in logs].count("realtime_reader_disconnected") == 1


async def test_an_outage_after_the_last_listener_has_left_is_logged(
    private_redis: ValkeyServer,
) -> None:
    async with _hub(private_redis.start().url()) as (hub, broker):
        hearer = Hearer()
        await hub.listen(NEWS, "news", hearer)
        await hub.leave("news", hearer)
        with anyio.fail_after(PATIENCE_SECONDS):
            while broker._wanted.is_set():
                await anyio.sleep(0.02)
        private_redis.kill()
        with capture_logs() as logs, anyio.fail_after(PATIENCE_SECONDS):
            await hub.listen(NEWS, "news", hearer)
            while "realtime_reader_disconnected" not in [line["event"] for line in logs]:
                await anyio.sleep(0.02)


async def test_of_what_waits_for_redis_the_oldest_is_lost(
    private_redis: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.realtime.redis_broker._MAX_WAITING", 3)
    url = private_redis.start().url()
    hearer = Hearer()
    async with _hub(url) as (there, _), _hub(url) as (_, broker):
        await there.listen(NEWS, "news", hearer)
        # None of them can be sent in between.
        for frame in "abcde":
            broker.publish("news", frame)
        await hearer.hears("e")
    assert hearer.heard == ["c", "d", "e"]


@asynccontextmanager
async def _frozen(url: str) -> AsyncIterator[tuple[str, anyio.Event]]:
    """The same server by way of a proxy, which forwards only what connects once it is told to."""
    authority, _, port = url.rpartition("/")[0].rpartition(":")
    thaw = anyio.Event()

    async def forward(source: SocketStream, target: SocketStream) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async for chunk in source:
                await target.send(chunk)
        await target.aclose()

    async def serve(client: SocketStream) -> None:
        async with client:
            if not thaw.is_set():
                with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    while True:
                        await client.receive()
            async with (
                await anyio.connect_tcp("127.0.0.1", int(port)) as server,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(forward, client, server)
                tasks.start_soon(forward, server, client)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"{authority}:{listener.extra(SocketAttribute.local_port)}/0", thaw
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def _hub(url: str) -> AsyncIterator[tuple[Hub, RedisBroker]]:
    """A hub as each process has one, with its broker."""
    settings = RedisSettings(REDIS_URL=SecretStr(url), REDIS_TIMEOUT_SECONDS=5)
    hub = Hub(RealtimeSettings(), {})
    async with open_redis(settings) as redis, open_broker(settings, redis, hub) as broker:
        yield hub, broker


@asynccontextmanager
async def _cut_once(url: str) -> AsyncIterator[str]:
    """The same server by way of a proxy, which withholds the first answer to a PUBLISH."""
    authority, _, port = url.rpartition("/")[0].rpartition(":")
    to_cut = [True]

    async def serve(client: SocketStream) -> None:
        has_published = False

        async def forward() -> None:
            nonlocal has_published
            async for chunk in client:
                has_published = has_published or b"PUBLISH" in chunk
                await server.send(chunk)
            tasks.cancel_scope.cancel()

        with suppress(anyio.BrokenResourceError):
            async with (
                client,
                await anyio.connect_tcp("127.0.0.1", int(port)) as server,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(forward)
                async for chunk in server:
                    if has_published and to_cut:
                        to_cut.clear()
                        break
                    await client.send(chunk)
                tasks.cancel_scope.cancel()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"{authority}:{listener.extra(SocketAttribute.local_port)}/0"
        tasks.cancel_scope.cancel()


async def _says_until_heard(broker: RedisBroker, hearer: Hearer, frame: str) -> None:
    async with anyio.create_task_group() as tasks:

        async def repeat() -> None:
            while True:
                broker.publish("news", frame)
                await anyio.sleep(0.1)

        tasks.start_soon(repeat)
        await hearer.hears(frame)
        tasks.cancel_scope.cancel()


async def _publish(server: ServedProcess, length: int) -> None:
    await publish(server, "news", times=MESSAGES, length=length)


async def _arrives(server: ServedProcess, channel: str, client: Client) -> None:
    frames: list[str] = []

    async def receive() -> None:
        while channel not in frames:
            frames.append((await client.receive())["channel"])

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            while channel not in frames:
                await publish(server, channel)
                await anyio.sleep(0.1)


async def _topics(redis: Redis, prefix: str) -> set[str]:
    names = await redis.pubsub_channels(f"{prefix}:realtime:*:[^$]*")
    return {os.fsdecode(name) for name in names}


async def test_a_server_that_falls_silent_is_given_up(
    private_redis: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.realtime.redis_broker._SILENCE_SECONDS", 0.1)
    with capture_logs() as logs:
        async with _hub(private_redis.start().url()) as (hub, _):
            await hub.listen(NEWS, "news", Hearer())
            private_redis.pause()
            with anyio.fail_after(PATIENCE_SECONDS):
                while "realtime_reader_disconnected" not in [line["event"] for line in logs]:
                    await anyio.sleep(0.02)
            private_redis.resume()
