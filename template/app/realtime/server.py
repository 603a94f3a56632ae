"""What only the server can do with a WebSocket, and ASGI has no words for: done under uvicorn."""

from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter
from typing import Any

from starlette.types import Receive

from app.core.uvicorn_config import uvicorn_config
from app.realtime.limits import RealtimeSettings

# uvicorn's own defaults; what was given on its command line is left alone.
_DEFAULT_FRAME_BYTES = 16 * 1024 * 1024
_DEFAULT_PING_SECONDS = 20.0
# uvicorn's own protocol, which is no public name of it: found by what is used of it below, so that
# a release without that costs speed and no start.
_PROTOCOL = "WebSocketsSansIOProtocol"
_used_of_protocol = attrgetter(
    "close_sent",
    "conn.extensions",
    "conn.state.__class__.OPEN",
    "frames",
    "handle_cont",
    "handle_ping",
    "handle_pong",
    "pending_ping_payload",
    "resume_writing",
    "transport.get_write_buffer_size",
    "transport.is_closing",
    "transport.pause_reading",
    "transport.write",
    "writable.is_set",
)


def limit_server(settings: RealtimeSettings) -> None:
    """Have the server refuse large frames before they are in memory, and ping as often as asked.

    Its pings are the heartbeat towards the client: whoever does not answer is closed. It also
    stops compressing: that would be done for each receiver of the same message again, and would
    hold memory for each connection.

    Call it before the server's signal handlers are replaced. Where the server is another one than
    uvicorn, nothing happens: then frames are measured when they have been read.
    """
    config = uvicorn_config()
    if getattr(config, "ws_max_size", None) == _DEFAULT_FRAME_BYTES:
        config.ws_max_size = settings.REALTIME_MAX_FRAME_BYTES
    if getattr(config, "ws_ping_interval", None) == _DEFAULT_PING_SECONDS:
        config.ws_ping_interval = settings.REALTIME_HEARTBEAT_SECONDS
    if getattr(config, "ws_ping_timeout", None) == _DEFAULT_PING_SECONDS:
        config.ws_ping_timeout = settings.REALTIME_HEARTBEAT_SECONDS
    if getattr(config, "ws_per_message_deflate", None):
        config.ws_per_message_deflate = False


@lru_cache(maxsize=16)
def _text_frame(text: str) -> bytes:
    """The whole of an unfragmented text frame (RFC 6455, section 5.2), as servers send it."""
    payload = text.encode()
    if len(payload) < 126:
        return b"\x81" + len(payload).to_bytes(1, "big") + payload
    if len(payload) < 65_536:
        return b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload
    return b"\x81\x7f" + len(payload).to_bytes(8, "big") + payload


class ServerSide:
    """The server's end of a connection; of HTTP's only what can be said of any connection.

    Under another server than uvicorn it does nothing.

    Args:
        receive: The connection's, as the server has passed it, if that is known.
    """

    def __init__(self, receive: Receive | None) -> None:
        self._protocol: Any = getattr(receive, "__self__", None)
        self._is_known = _is_known(self._protocol)
        if not self._is_known:
            return
        # Looked up once, as each event is written to each of its receivers.
        protocol: Any = self._protocol
        self._is_writable = protocol.writable.is_set
        self._transport = protocol.transport
        self._conn = protocol.conn
        self._open = protocol.conn.state.__class__.OPEN

    def write(self, text: str) -> bool:
        """Send a text at once, if nothing has to be waited for; whether that was so.

        Without compression a frame is the same bytes for all its receivers: they are made once,
        and go to the transport without a task's turn for each of them. It is for a writer that
        has nothing else under way.
        """
        if (
            not self._is_known
            or not self._is_writable()
            or self._protocol.close_sent
            or self._conn.state is not self._open
            or self._conn.extensions
            or self._transport.is_closing()
        ):
            return False
        self._transport.write(_text_frame(text))
        return True

    def push(self) -> None:
        """Let what is being sent through to the transport, whether or not the client reads.

        A close frame could otherwise not be sent to exactly the clients that need it.
        """
        if self._is_known:
            self._protocol.resume_writing()

    def stop_reading(self) -> None:
        """Leave what the client sends where it is: taking it apart would cost the others time.

        After the close frame, as the server reads on to find its answer.
        """
        if self._is_known:
            self._transport.pause_reading()

    def on_frame(self, count: Callable[[], None]) -> None:
        """Have `count` called for each of the client's frames that the application never sees.

        Those are pings, pongs that nobody has asked for, and all but the first frame of a message.
        """
        if not self._is_known:
            return
        protocol = self._protocol
        cont, ping, pong = protocol.handle_cont, protocol.handle_ping, protocol.handle_pong

        def handle_cont(event: Any) -> None:
            count()
            cont(event)

        def handle_ping() -> None:
            count()
            ping()

        def handle_pong(event: Any) -> None:
            if bytes(event.data) != protocol.pending_ping_payload:
                count()
            pong(event)

        protocol.handle_cont, protocol.handle_ping = handle_cont, handle_ping
        protocol.handle_pong = handle_pong

    @property
    def is_closing(self) -> bool:
        """Whether the server closes the connection: once the client has read what it buffers."""
        return self._is_known and bool(self._transport.is_closing())

    @property
    def unsent_bytes(self) -> int:
        """What is buffered for the client, pongs included."""
        return int(self._transport.get_write_buffer_size()) if self._is_known else 0

    @property
    def fragments(self) -> int:
        """Of how many frames the message consists that the client has not completed."""
        return len(self._protocol.frames) if self._is_known else 0

    def abort(self) -> None:
        """Drop the connection and what it buffers; a mere close waits until that is read."""
        abort = getattr(getattr(self._protocol, "transport", None), "abort", None)
        if abort is not None:
            abort()


def _is_known(protocol: object) -> bool:
    try:
        _used_of_protocol(protocol)
    except AttributeError:
        return False
    return type(protocol).__name__ == _PROTOCOL
