"""Carries events between processes through Redis Pub/Sub: at most once, in order, reconnecting."""

import asyncio
import random
import re
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import uuid4

import anyio
import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.core.redis import REDIS_ERRORS, RedisClient, RedisSettings, create_pool
from app.core.tasks import end_tasks
from app.core.telemetry import carry, resume
from app.realtime.hub import Hub

_CHANNEL = "realtime"
# What waits for Redis; beyond it the oldest is lost.
_MAX_WAITING = 10_000
_BATCH = 100
_FLUSH_SECONDS = 2.0
# How long a client waits at most for a subscription to be sent, and again for it to be confirmed.
_CONFIRM_SECONDS = 2.0
# After a silence the server is pinged; after two the connection is given up.
_SILENCE_SECONDS = 5.0
# Longer than a connection with TLS takes; a server that is frozen may accept and say nothing.
_CONNECT_SECONDS = 2.0
_FIRST_DELAY_SECONDS = 0.05
_LAST_DELAY_SECONDS = 1.0
_ERRORS: Final = (RedisError, OSError)
# Whose message it is, and in which trace: what is sent in a process's mark, as long as that is.
_TAG = 7
_TRACED = re.compile(rb"\0(.{7})(.{16})(.{8})", re.DOTALL)
_SAMPLED = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f][13579bdf]")

logger = structlog.get_logger(__name__)


class RedisBroker:
    """The process's part in the fan-out: one task that publishes, and one that reads.

    A message that is published while Redis is away reaches nobody in other processes, then or
    later. The order of what one process publishes is kept.

    Args:
        settings: Where Redis is.
        redis: Has the circuit breaker that holds for publishing as well.
        hub: Gets what other processes publish.
    """

    def __init__(self, settings: RedisSettings, redis: RedisClient, hub: Hub) -> None:
        self._settings = settings
        self._redis = redis
        self._hub = hub
        # Pub/Sub knows no databases: without its number, services that share a server would hear
        # each other.
        database = redis.raw.connection_pool.connection_kwargs.get("db") or 0
        self._prefix = redis.key(_CHANNEL, str(database), "")
        # Marks what this process has published: its listeners have had that already.
        self._process = uuid4().hex
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._lost = 0
        self._is_interrupted = False
        self._to_publish = asyncio.Event()
        self._published = asyncio.Event()
        self._published.set()
        # What is listened to; set when Redis has confirmed it.
        self._topics: dict[str, asyncio.Event] = {}
        self._wanted = asyncio.Event()
        # The reader's connection while there is one, what it has been told to subscribe to, and how
        # many answers to that are still to come.
        self._pubsub: PubSub | None = None
        self._asked_for: set[str] = set()
        self._unanswered: Counter[str] = Counter()
        self._asking = asyncio.Lock()
        # About what the server is still to be told; also by those who have given up waiting.
        self._to_tell: set[str] = set()

    def publish(self, topic: str, frame: str) -> None:
        """Send a frame to the other processes, in order; returns at once."""
        if len(self._waiting) >= _MAX_WAITING:
            self._waiting.popleft()
            self._lost += 1
        mark = _mark(self._process, carry().get("traceparent"))
        self._waiting.append((f"{self._prefix}{topic}", mark + frame.encode()))
        self._published.clear()
        self._to_publish.set()

    async def subscribe(self, topic: str) -> None:
        """Have what others publish on `topic` delivered from now on.

        While Redis is away it returns nevertheless, and takes effect when Redis is back.
        """
        confirmed = self._topics.get(topic)
        if confirmed is None:
            confirmed = self._topics[topic] = asyncio.Event()
            self._wanted.set()
            # Others may wait for the same answer: whoever gives up must have asked before.
            with anyio.move_on_after(_CONFIRM_SECONDS, shield=True):
                await self._ask(topic)
        with anyio.move_on_after(_CONFIRM_SECONDS if self._redis.is_available else 0):
            await confirmed.wait()

    async def unsubscribe(self, topic: str) -> None:
        """Hear no more of `topic`."""
        if self._topics.pop(topic, None) is not None:
            await self._ask(topic)

    async def flush(self) -> None:
        """Wait until what was published so far has been sent, for two seconds at most."""
        with anyio.move_on_after(_FLUSH_SECONDS):
            await self._published.wait()

    async def write(self) -> None:
        """Send what is published, until cancelled."""
        # A connection of its own, as the shared ones send again what may have arrived.
        async with self._connection() as client:
            while True:
                await self._to_publish.wait()
                while self._waiting:
                    count = min(_BATCH, len(self._waiting))
                    await self._send(client, [self._waiting.popleft() for _ in range(count)])
                self._to_publish.clear()
                self._published.set()

    async def _send(self, client: Redis, batch: list[tuple[str, bytes]]) -> None:
        async def send(_: Redis) -> None:
            async with client.pipeline(transaction=False) as pipeline:
                for channel, payload in batch:
                    pipeline.publish(channel, payload)
                await pipeline.execute()

        try:
            await self._redis.call(send)
        except Exception as error:
            if not self._is_interrupted:
                self._is_interrupted = True
                unexpected = None if isinstance(error, REDIS_ERRORS) else error
                logger.warning("realtime_fan_out_interrupted", exc_info=unexpected)
            self._lost += len(batch)
            return
        if self._is_interrupted or self._lost:
            logger.warning("realtime_fan_out_resumed", messages_lost=self._lost)
            self._lost = 0
            self._is_interrupted = False

    async def read(self) -> None:
        """Deliver what others publish, until cancelled; survives outages."""
        loop = asyncio.get_running_loop()
        delay = _FIRST_DELAY_SECONDS
        while True:
            # A process without listeners needs no connection.
            await self._wanted.wait()
            began = loop.time()
            failure: Exception | None = None
            try:
                # Silence is no error. Each time anew: redis-py 5 may lose a broken connection
                # instead of giving it back to its pool.
                async with (
                    self._connection(socket_timeout=None) as client,
                    client.pubsub() as pubsub,
                ):
                    with anyio.fail_after(_CONNECT_SECONDS):
                        await pubsub.connect()
                    await self._deliver(pubsub)
            except Exception as error:  # noqa: BLE001
                failure = error
            if failure is None or loop.time() - began > _SILENCE_SECONDS:
                # It has worked: a server that refuses a subscription only does so at once.
                delay = _FIRST_DELAY_SECONDS
            if failure is not None and delay == _FIRST_DELAY_SECONDS:
                # Once for each outage.
                logger.warning(
                    "realtime_reader_disconnected",
                    reason=repr(failure)[:200],
                    exc_info=None if isinstance(failure, _ERRORS) else failure,
                )
            # Jitter, so that not all processes come back in the same moment.
            await asyncio.sleep(delay * random.uniform(0.5, 1))
            delay = _FIRST_DELAY_SECONDS if failure is None else min(delay * 2, _LAST_DELAY_SECONDS)

    def _connection(self, **options: Any) -> Redis:
        # What fails is put right here alone.
        retry = Retry(NoBackoff(), 0)
        return Redis.from_pool(
            create_pool(
                self._settings, max_connections=1, retry=retry, retry_on_error=[], **options
            )
        )

    async def _ask(self, topic: str) -> None:
        """Have the server know whether `topic` is wanted now; the latest wish wins."""
        self._to_tell.add(topic)
        async with self._asking:
            self._to_tell.discard(topic)
            pubsub = self._pubsub
            is_wanted = topic in self._topics
            if pubsub is None:
                return
            if is_wanted is (topic in self._asked_for):
                # Somebody has come before the last one's leaving was said.
                self._confirm(topic)
                return
            # First, as the answer may be read before this goes on.
            self._asked_for ^= {topic}
            self._unanswered[topic] += 1
            name = f"{self._prefix}{topic}"
            try:
                await (pubsub.subscribe(name) if is_wanted else pubsub.unsubscribe(name))
            except BaseException as error:
                # Has the reader connect again, and ask for what is wanted then.
                self._pubsub = None
                if not isinstance(error, _ERRORS):
                    raise

    def _confirm(self, topic: str) -> None:
        # The answer to an earlier wish says nothing of the latest.
        if topic in self._asked_for and not self._unanswered[topic] and topic in self._topics:
            self._topics[topic].set()

    async def _deliver(self, pubsub: PubSub) -> None:
        self._pubsub = pubsub
        try:
            self._to_tell.update(self._topics)
            is_silent = False
            while self._topics:
                while self._to_tell and self._pubsub is not None:
                    with anyio.fail_after(_SILENCE_SECONDS):
                        await self._ask(next(iter(self._to_tell)))
                if self._pubsub is None:
                    raise ConnectionError("a subscription could not be sent")
                message = await pubsub.get_message(timeout=_SILENCE_SECONDS)
                if message is None:
                    if is_silent:
                        raise TimeoutError
                    # An end that is gone looks like one at which nothing happens.
                    await pubsub.ping()
                else:
                    self._take(message)
                is_silent = message is None
            # The connection is given back until somebody listens again.
            self._wanted.clear()
        finally:
            self._pubsub = None
            self._asked_for = set()
            self._unanswered = Counter()
            for confirmed in self._topics.values():
                confirmed.clear()

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "pong":
            return
        topic = message["channel"].decode().removeprefix(self._prefix)
        if message["type"] != "message":
            self._unanswered[topic] -= 1
            if not self._unanswered[topic]:
                del self._unanswered[topic]
            self._confirm(topic)
            return
        data: bytes = message["data"]
        mark, frame = data[: len(self._process)], data[len(self._process) :]
        traced = _TRACED.fullmatch(mark)
        own = bytes.fromhex(self._process)[:_TAG] if traced else self._process.encode()
        if (traced[1] if traced else mark) == own:
            return
        cause = {"traceparent": f"00-{traced[2].hex()}-{traced[3].hex()}-01"} if traced else {}
        with resume(cause):
            self._hub.deliver(topic, frame.decode())


def _mark(process: str, traceparent: str | None) -> bytes:
    """What a message begins with: the process's id, in hex or, in a trace, the start of its bytes.

    Releases before 1.5 take 32 bytes that differ from their own id for another process's.
    """
    sampled = _SAMPLED.fullmatch(traceparent or "")
    if sampled is None:
        return process.encode()
    return b"\0" + bytes.fromhex(process)[:_TAG] + bytes.fromhex(sampled[1] + sampled[2])


@asynccontextmanager
async def open_broker(
    settings: RedisSettings, redis: RedisClient, hub: Hub
) -> AsyncIterator[RedisBroker]:
    """Connect the hub with those of the other processes; at exit what is under way is sent."""
    broker = hub.broker = RedisBroker(settings, redis, hub)
    reading = asyncio.create_task(broker.read(), name="realtime_reader")
    writing = asyncio.create_task(broker.write(), name="realtime_writer")
    try:
        yield broker
    finally:
        await broker.flush()
        await end_tasks(reading, writing)
