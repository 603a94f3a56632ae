"""One channel as Server-Sent Events, for clients that only listen and only speak HTTP."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import anyio
from starlette.requests import HTTPConnection
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.core.channels import Channel
from app.core.http_stack import SERVER_RECEIVE
from app.core.principal import Principal
from app.realtime.hub import GOING_AWAY, Hub
from app.realtime.limits import RealtimeSettings
from app.realtime.mailbox import Mailbox
from app.realtime.server import ServerSide


class EventStream:
    """A client's stream of the frames of one channel; the same frames as on a WebSocket.

    A client that does not keep up is cut, unless the channel drops messages; it comes back by
    itself, as after everything that ends the stream.

    Args:
        channel: What it hears of.
        principal: On whose behalf it was opened.
        hub: Where it listens.
        settings: What it may use.
    """

    def __init__(
        self, channel: Channel, principal: Principal, hub: Hub, settings: RealtimeSettings
    ) -> None:
        self.principal = principal
        self._channel = channel
        self._hub = hub
        self._heartbeat_seconds = settings.REALTIME_HEARTBEAT_SECONDS
        self._send_timeout = settings.REALTIME_SEND_TIMEOUT_SECONDS
        self._mailbox = Mailbox(settings.REALTIME_QUEUE_SIZE, hub.counters)
        self._sending_since: float | None = None
        self._loop = asyncio.get_running_loop()
        self._topic = channel.topic(principal.id)
        self._scope = anyio.CancelScope()
        self._server: ServerSide | None = None

    async def serve(self, connection: HTTPConnection, send: Callable[[], Awaitable[None]]) -> None:
        """Listen while `send` sends `text`, until either side ends that."""
        self._server = ServerSide(connection.scope.get(SERVER_RECEIVE))
        self._hub.enter(self, connection)
        try:
            with self._scope:
                await send()
        finally:
            await self._hub.exit(self, [self._topic])

    async def text(self) -> AsyncIterator[str]:
        """What is sent: an event for each frame, and comments in between."""
        await self._hub.listen(self._channel, self._topic, self)
        frame: str | None = ""
        while frame is not None:
            self._sending_since = self._loop.time()
            # A comment keeps proxies from taking silence for an end.
            yield f"data: {frame}\n\n" if frame else ":\n\n"
            self._sending_since = None
            frame = ""
            with anyio.move_on_after(self._heartbeat_seconds):
                frame = await self._mailbox.take()

    @property
    def waiting(self) -> int:
        """How many messages wait for the client."""
        return len(self._mailbox)

    def offer(self, channel: Channel, frame: str) -> None:
        """Queue an event."""
        if not self._mailbox.put(frame, channel):
            self._cut()

    def close(self, code: int, reason: str) -> None:  # noqa: ARG002
        """End the stream; what waits is sent before only if the service is going away."""
        self._mailbox.seal(discard=code != GOING_AWAY)

    def check(self, now: float) -> None:
        """Cut the stream if the client has not taken a message for too long."""
        if self._sending_since is not None and now - self._sending_since > self._send_timeout:
            self._cut()

    def abandon(self) -> None:
        """Cut the stream, whatever has not been sent yet."""
        # First, as the server would wait for the client to read what it buffers.
        if self._server is not None:
            self._server.abort()
        self._mailbox.seal(discard=True)
        self._scope.cancel()

    def _cut(self) -> None:
        self._hub.counters.too_slow += 1
        self.abandon()


class EventStreamResponse(StreamingResponse):
    """Sends a stream."""

    def __init__(self, stream: EventStream) -> None:
        super().__init__(
            stream.text(),
            media_type="text/event-stream",
            # Proxies such as nginx would collect it otherwise.
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; an incomplete body makes the server close the connection."""
        sending = partial(super().__call__, scope, receive, send)
        await self._stream.serve(HTTPConnection(scope), sending)
