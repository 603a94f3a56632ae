"""The hub: who listens to what in this process, and how what is published reaches them."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from time import perf_counter
from typing import Protocol

import anyio
import structlog
from starlette.requests import HTTPConnection

from app.core.channels import Channel, Message, Published
from app.core.errors import ServiceUnavailableError, TooManyRequestsError
from app.core.events import EventBus
from app.core.principal import Principal
from app.core.tasks import end_tasks
from app.core.telemetry import SpanKind, span, step
from app.realtime.limits import RealtimeSettings
from app.realtime.schemas import EventFrame
from app.realtime.statistics import Counters, Statistics

GOING_AWAY = 1012
"""The close code of a service that restarts: clients may come back at once."""

_CHECK_SECONDS = 1.0
_REPORT_CHECKS = 60
_LEAVE_SECONDS = 5.0

logger = structlog.get_logger(__name__)


class Listener(Protocol):
    """Hears what is published on a topic."""

    def offer(self, channel: Channel, frame: str) -> None:
        """Take an event frame, as JSON; must return at once and never raises."""


class Receiver(Listener, Protocol):
    """A client's connection, of whatever kind."""

    @property
    def principal(self) -> Principal:
        """On whose behalf it was opened."""

    @property
    def waiting(self) -> int:
        """How many messages wait for the client."""

    def close(self, code: int, reason: str) -> None:
        """End it, with what waits for it still delivered if `code` is `GOING_AWAY`."""

    def check(self, now: float) -> None:
        """End it if it does not take what it is sent.

        Args:
            now: The event loop's time.
        """

    def abandon(self) -> None:
        """Let go of it at once."""


class Observer(Protocol):
    """Is told of connections."""

    def opened(self, receiver: Receiver, connection: HTTPConnection) -> None:
        """One was opened by this request."""

    def ended(self, receiver: Receiver) -> None:
        """It is gone."""


class Broker(Protocol):
    """Carries events between the processes of the service."""

    def publish(self, topic: str, frame: str) -> None:
        """Send a frame to the other processes, in order; must return at once."""

    async def subscribe(self, topic: str) -> None:
        """Have what others publish on `topic` delivered from now on."""

    async def unsubscribe(self, topic: str) -> None:
        """Undo it."""


class NoBroker:
    """For a service of one process: what is published reaches those who are connected to it."""

    def publish(self, topic: str, frame: str) -> None:
        """There is nobody else to tell."""

    async def subscribe(self, topic: str) -> None:
        """There is nobody else to hear."""

    async def unsubscribe(self, topic: str) -> None:
        """There is nobody else to hear."""


class Hub:
    """All connections of this process.

    Args:
        settings: How many there may be.
        channels: What clients may subscribe to, by name.
    """

    def __init__(self, settings: RealtimeSettings, channels: Mapping[str, Channel]) -> None:
        self.channels = channels
        self.broker: Broker = NoBroker()
        self.counters = Counters()
        self._settings = settings
        self._receivers: set[Receiver] = set()
        self._per_principal: Counter[str] = Counter()
        # A dict for its order: nobody is always the last one to hear.
        self._topics: dict[str, dict[Listener, Channel]] = {}
        self._observers: list[Observer] = []
        self._is_closing = False
        self._empty = asyncio.Event()
        self._empty.set()

    def publish(self, channel: Channel, message: Message, to: str | None = None) -> None:
        """Push `message` to all who have subscribed, in all processes; returns at once.

        What must only be seen after a commit is recorded instead:
        `record(session, channel.publication(message))`.

        Args:
            channel: What to publish on.
            message: Of one of the channel's kinds.
            to: The id of the principal who hears of it; exactly private channels have one.

        Raises:
            ValueError: it does not belong on this channel.
        """
        self._push(channel.publication(message, to))

    async def on_published(self, event: Published) -> None:
        """Push what a transaction has published."""
        self._push(event)

    def _push(self, event: Published) -> None:
        # Once for all receivers.
        frame = EventFrame(
            channel=event.channel, event=event.event, data=event.data
        ).model_dump_json()
        with span(f"publish {event.event}", SpanKind.PRODUCER):
            self.deliver(event.topic, frame)
            self.broker.publish(event.topic, frame)

    def deliver(self, topic: str, frame: str) -> None:
        """Hand a frame to those in this process who listen to `topic`."""
        # A copy: whoever overflows may leave meanwhile.
        listeners = list(self._topics.get(topic, {}).items())
        if not listeners:
            return
        began = perf_counter()
        # Without what follows the colon, which is somebody's id.
        name = topic.partition(":")[0]
        with step(f"deliver {name}", SpanKind.CONSUMER, listeners=len(listeners)):
            for listener, channel in listeners:
                try:
                    listener.offer(channel, frame)
                except Exception:
                    # Of another release's frame, for example; the others hear of it all the same.
                    logger.exception("realtime_listener_failed", topic=topic)
        self.counters.count_fan_out(len(listeners), perf_counter() - began)

    async def listen(self, channel: Channel, topic: str, listener: Listener) -> None:
        """Have `listener` hear of `topic` from now on, in this process and in others."""
        listeners = self._topics.setdefault(topic, {})
        listeners[listener] = channel
        await self.broker.subscribe(topic)

    async def leave(self, topic: str, listener: Listener) -> None:
        """Undo it; without effect if it does not listen."""
        await self._leave([topic], listener)

    async def _leave(self, topics: Iterable[str], listener: Listener) -> None:
        left = [topic for topic in topics if self._forget(topic, listener)]
        # Or a cancelled connection would have the process hear of them for ever.
        deadline = anyio.current_time() + _LEAVE_SECONDS
        for topic in left:
            # Meanwhile somebody may have come.
            if topic not in self._topics:
                with anyio.CancelScope(deadline=deadline, shield=True):
                    await self.broker.unsubscribe(topic)

    def _forget(self, topic: str, listener: Listener) -> bool:
        """Whether nobody is left who listens."""
        listeners = self._topics.get(topic, {})
        listeners.pop(listener, None)
        return not listeners and self._topics.pop(topic, None) is not None

    def admit(self, principal: Principal) -> None:
        """Refuse a connection for which there is no room.

        Raises:
            ServiceUnavailableError: the process has enough of them, or is about to exit.
            TooManyRequestsError: the principal has.
        """
        full = len(self._receivers) >= self._settings.REALTIME_MAX_CONNECTIONS
        if full or self._is_closing:
            raise ServiceUnavailableError
        most = self._settings.REALTIME_MAX_CONNECTIONS_PER_USER
        if not principal.is_anonymous and self._per_principal[principal.id] >= most:
            raise TooManyRequestsError(
                "You have too many connections.", headers={"Retry-After": "60"}
            )

    def enter(self, receiver: Receiver, connection: HTTPConnection) -> None:
        """Count a connection that was admitted."""
        self._receivers.add(receiver)
        self.counters.opened += 1
        self._per_principal[receiver.principal.id] += 1
        self._empty.clear()
        for observer in self._observers:
            observer.opened(receiver, connection)
        if self._is_closing:
            receiver.close(GOING_AWAY, "the service restarts")

    async def exit(self, receiver: Receiver, topics: Iterable[str]) -> None:
        """Forget a connection that has ended, and what it listened to."""
        self._receivers.discard(receiver)
        self._per_principal[receiver.principal.id] -= 1
        if not self._per_principal[receiver.principal.id]:
            del self._per_principal[receiver.principal.id]
        if not self._receivers:
            self._empty.set()
        for observer in self._observers:
            observer.ended(receiver)
        await self._leave(list(topics), receiver)

    def observe(self, observer: Observer) -> None:
        """Have `observer` told of each connection."""
        self._observers.append(observer)

    def receivers(self) -> list[Receiver]:
        """The connections that are open now."""
        return list(self._receivers)

    def statistics(self) -> Statistics:
        """Read what is measured; counts the queues, so it is not for every event."""
        queues = [receiver.waiting for receiver in self._receivers]
        return Statistics(
            connections=len(queues),
            waiting=sum(queues),
            deepest_queue=max(queues, default=0),
            **asdict(self.counters),
        )

    async def close(self) -> None:
        """Take no more connections, and end those that there are.

        What waits for them is delivered, as far as they take it within
        `REALTIME_SEND_TIMEOUT_SECONDS`; the others are cut.
        """
        self._is_closing = True
        if count := len(self._receivers):
            logger.info("realtime_closing", connections=count)
        for receiver in self.receivers():
            receiver.close(GOING_AWAY, "the service restarts")
        with anyio.move_on_after(self._settings.REALTIME_SEND_TIMEOUT_SECONDS):
            await self._empty.wait()
        if left := self.receivers():
            logger.warning("realtime_cut", connections=len(left))
        for receiver in left:
            receiver.abandon()

    def _check(self, receiver: Receiver, now: float) -> None:
        try:
            receiver.check(now)
        except Exception:
            logger.exception("realtime_check_failed")

    async def watch(self) -> None:
        """Look after the connections until cancelled."""
        loop = asyncio.get_running_loop()
        reported = self.statistics()
        for number in itertools.count(1):
            await asyncio.sleep(_CHECK_SECONDS)
            now = loop.time()
            for receiver in self.receivers():
                self._check(receiver, now)
            # A process that offers nothing has nothing to report.
            if number % _REPORT_CHECKS == 0 and self.channels:
                found = self.statistics()
                if found.connections or reported.connections or found.opened != reported.opened:
                    logger.info("realtime_statistics", **asdict(found))
                    reported = found


@asynccontextmanager
async def open_hub(
    settings: RealtimeSettings, events: EventBus, channels: Mapping[str, Channel]
) -> AsyncIterator[Hub]:
    """Open the hub of the process; at exit its connections are closed.

    Args:
        settings: Its limits.
        events: Where transactions publish.
        channels: What clients may subscribe to, by name.
    """
    hub = Hub(settings, channels)
    events.subscribe_after_commit(Published, hub.on_published)
    watching = asyncio.create_task(hub.watch(), name="realtime_watch")
    try:
        yield hub
    finally:
        await hub.close()
        await end_tasks(watching)
