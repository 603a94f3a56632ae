"""One WebSocket: reads the client's frames, and writes what it is offered in a task of its own."""

import asyncio
from typing import Literal, assert_never

import anyio
import structlog
from pydantic import BaseModel, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.core.channels import Channel
from app.core.principal import Principal
from app.realtime.hub import GOING_AWAY, Hub
from app.realtime.limits import RealtimeSettings
from app.realtime.mailbox import Mailbox
from app.realtime.schemas import (
    CLIENT_FRAMES,
    ErrorCode,
    ErrorFrame,
    Ping,
    Pong,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
)
from app.realtime.server import ServerSide

UNSUPPORTED_DATA = 1003
POLICY_VIOLATION = 1008
MESSAGE_TOO_BIG = 1009
TRY_AGAIN_LATER = 1013

_NO_CODE = 1005
# The client has left, or said nothing of why.
_ORDERLY = frozenset({1000, 1001, _NO_CODE})
_BURST_SECONDS = 5
# Whoever floods us goes on while the close frame is on its way; until then nothing is read.
_FLOOD_LINGER_SECONDS = 2.0
# The server answers pings whether or not that is read.
_MAX_UNSENT_BYTES = 1024 * 1024
_PONG = Pong().model_dump_json()

logger = structlog.get_logger(__name__)


class Connection:
    """A client's WebSocket, from its handshake to its end.

    Args:
        websocket: Not accepted yet.
        principal: On whose behalf it is opened.
        hub: Where it listens.
        settings: What it may use.
    """

    def __init__(
        self, websocket: WebSocket, principal: Principal, hub: Hub, settings: RealtimeSettings
    ) -> None:
        self.principal = principal
        self._websocket = websocket
        self._hub = hub
        self._settings = settings
        self._server = ServerSide(websocket._receive)  # noqa: SLF001
        self._loop = asyncio.get_running_loop()
        self._mailbox = Mailbox(settings.REALTIME_QUEUE_SIZE, hub.counters)
        self._subscriptions: dict[str, str] = {}
        self._allowance = _Allowance(settings.REALTIME_MESSAGES_PER_SECOND, self._loop.time())
        self._sending_since: float | None = None
        self._closing_since: float | None = None
        self._longest_frame = 0
        self._end: tuple[int, str] | None = None
        self._is_flood = False
        self._scope = anyio.CancelScope()

    async def serve(self, subprotocol: str | None = None) -> None:
        """Accept the connection and go on until it ends."""
        await self._websocket.accept(subprotocol)
        self._server.on_frame(self._count)
        self._hub.enter(self, self._websocket)
        writing = asyncio.create_task(self._write())
        try:
            with self._scope:
                await self._read()
        finally:
            self._mailbox.seal(discard=True)
            writing.cancel()
            await self._hub.exit(self, self._subscriptions.values())

    @property
    def waiting(self) -> int:
        """How many messages wait for the client."""
        return len(self._mailbox)

    def offer(self, channel: Channel, frame: str) -> None:
        """Send or queue an event; who cannot keep up is closed unless the channel drops some."""
        self._put(frame, channel)

    def close(self, code: int, reason: str) -> None:
        """End the connection; what waits is sent before only if the service is going away."""
        if self._end is not None:
            return
        self._end = (code, reason)
        self._hub.counters.too_slow += code == TRY_AGAIN_LATER
        if code != GOING_AWAY:
            logger.info("websocket_closed", code=code, reason=reason, principal=self.principal.id)
            if self._sending_since is not None:
                self._server.push()
        self._mailbox.seal(discard=code != GOING_AWAY)
        # Also after the end of `serve`: what the server buffers could be there for ever.
        self._loop.call_later(self._settings.REALTIME_SEND_TIMEOUT_SECONDS, self.abandon)

    def check(self, now: float) -> None:
        """Close it if the client has not taken a message for too long, or fills the server."""
        patience = self._settings.REALTIME_SEND_TIMEOUT_SECONDS
        if self._server.is_closing:
            # We are told of the end when the client has read the rest, which may be never.
            self._closing_since = self._closing_since or now
            if now - self._closing_since > patience:
                self._cut("the end is not read")
        elif self._server.unsent_bytes > _MAX_UNSENT_BYTES + self._most_unsent_bytes:
            self._cut("pongs are not read")
        elif self._server.fragments > self._settings.REALTIME_MAX_FRAME_BYTES:
            self._cut("too many fragments")
        elif self._sending_since is not None and now - self._sending_since > patience:
            self.close(TRY_AGAIN_LATER, "nothing is read")

    def abandon(self) -> None:
        """Drop the connection, whatever has not been sent yet."""
        self._server.abort()
        self._scope.cancel()

    @property
    def _most_unsent_bytes(self) -> int:
        # The server takes a frame although one that is still buffered was too much; one more is
        # pushed; a character is four bytes at most.
        return 3 * 4 * self._longest_frame

    def _cut(self, reason: str) -> None:
        logger.info("websocket_cut", reason=reason, principal=self.principal.id)
        self.abandon()

    def _put(self, frame: str, channel: Channel | None = None) -> None:
        self._longest_frame = max(self._longest_frame, len(frame))
        # Otherwise the frame would overtake those that wait.
        is_idle = self._sending_since is None and self._end is None and not self._mailbox
        if is_idle and self._server.write(frame):
            return
        if not self._mailbox.put(frame, channel):
            self.close(TRY_AGAIN_LATER, "too slow")

    async def _write(self) -> None:
        try:
            while (frame := await self._mailbox.take()) is not None:
                self._sending_since = self._loop.time()
                await self._websocket.send({"type": "websocket.send", "text": frame})
                self._sending_since = None
            if self._end is not None:
                self._sending_since = self._loop.time()
                if self._end[0] != GOING_AWAY:
                    self._server.push()
                await self._websocket.close(*self._end)
                if self._is_flood:
                    self._server.stop_reading()
        except (WebSocketDisconnect, RuntimeError):
            # The client is gone, which the reader learns, or the server closes the connection, in
            # which case `check` waits for the end.
            self._mailbox.seal(discard=True)
        finally:
            self._sending_since = None

    async def _read(self) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                self._note_end(message.get("code", _NO_CODE), has_said_so="reason" in message)
                return
            if self._end is None:
                await self._take(message.get("text"))

    def _note_end(self, code: int, *, has_said_so: bool) -> None:
        # Such as a breach of the protocol, or a heartbeat that was missed or a network that has
        # gone, of which uvicorn tells without a reason, not even an empty one.
        if self._end is None and not (has_said_so and code in _ORDERLY):
            logger.info("websocket_lost", code=int(code), principal=self.principal.id)

    def _count(self) -> None:
        """Count a frame; whoever sends too many is closed."""
        if self._end is None and not self._allowance.take(self._loop.time()):
            self._is_flood = True
            self.close(POLICY_VIOLATION, "too many messages")
            self._loop.call_later(_FLOOD_LINGER_SECONDS, self.abandon)

    async def _take(self, text: str | None) -> None:
        self._count()
        if self._end is not None:
            return
        if text is None:
            self.close(UNSUPPORTED_DATA, "only text frames are understood")
        elif len(text.encode()) > self._settings.REALTIME_MAX_FRAME_BYTES:
            self.close(MESSAGE_TOO_BIG, "the frame is too large")
        else:
            await self._answer(text)

    async def _answer(self, text: str) -> None:
        try:
            frame = CLIENT_FRAMES.validate_json(text)
        except ValidationError as error:
            self._refuse(*_explain(error))
            return
        match frame:
            case Subscribe():
                await self._subscribe(frame.channel)
            case Unsubscribe():
                await self._unsubscribe(frame.channel)
            case Ping():
                self._put(_PONG)
            case _:
                assert_never(frame)

    async def _subscribe(self, name: str) -> None:
        channel = self._hub.channels.get(name)
        if channel is None:
            self._refuse("unknown-channel", "There is no such channel.")
        elif not channel.allows(self.principal):
            self._refuse("forbidden", "You may not subscribe to this channel.")
        elif name in self._subscriptions:
            self._send(Subscribed(channel=name))
        elif len(self._subscriptions) >= self._settings.REALTIME_MAX_SUBSCRIPTIONS:
            self.close(POLICY_VIOLATION, "too many subscriptions")
        else:
            topic = self._subscriptions[name] = channel.topic(self.principal.id)
            await self._hub.listen(channel, topic, self)
            self._send(Subscribed(channel=name))

    async def _unsubscribe(self, name: str) -> None:
        topic = self._subscriptions.pop(name, None)
        if topic is not None:
            await self._hub.leave(topic, self)
        self._send(Unsubscribed(channel=name))

    def _refuse(self, code: ErrorCode, detail: str) -> None:
        self._send(ErrorFrame(code=code, detail=detail))

    def _send(self, frame: BaseModel) -> None:
        self._put(frame.model_dump_json())


class _Allowance:
    """How many messages a client may send now: a token bucket."""

    def __init__(self, per_second: float, now: float) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second * _BURST_SECONDS)
        self._left = self._most
        self._at = now

    def take(self, now: float) -> bool:
        """Use one up, if there is one."""
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _explain(error: ValidationError) -> tuple[Literal["invalid-message", "unknown-type"], str]:
    problem = error.errors(include_url=False, include_input=False)[0]
    if problem["type"] == "union_tag_invalid":
        return "unknown-type", "The type is subscribe, unsubscribe or ping."
    where = ".".join(str(part) for part in problem["loc"][1:])[:100]
    return "invalid-message", f"{where}: {problem['msg']}" if where else problem["msg"]
