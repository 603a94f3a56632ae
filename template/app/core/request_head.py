"""Limits on the head of a request, in the server: no ASGI message comes before it is complete."""

import asyncio
from typing import Any, Final

from app.core.http_settings import HttpSettings
from app.core.uvicorn_config import uvicorn_config

_MAX_BYTES: Final = 65_536
_PART_BYTES: Final = 4_096
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


def limit_heads(settings: HttpSettings) -> None:
    """Have uvicorn end connections whose client sends too long a head, or does not finish it.

    A head of more than 64 KiB is answered 431, as h11 does it; the parser that uvicorn prefers,
    httptools, would keep whatever comes. One that is not complete `HEAD_TIMEOUT_SECONDS` after
    the connection was made, or after its first byte, ends the connection.

    Call it before the server's signal handlers are replaced. It is for uvicorn with httptools;
    elsewhere nothing happens.
    """
    config = uvicorn_config()
    protocol: Any = getattr(config, "http_protocol_class", None)
    if hasattr(protocol, "on_message_begin"):
        config.http_protocol_class = bounded(protocol, settings.HEAD_TIMEOUT_SECONDS)


def bounded(protocol: Any, seconds: float) -> Any:  # noqa: C901
    """The protocol with these limits.

    Args:
        protocol: uvicorn's for httptools.
        seconds: How long a head may take.
    """

    class Bounded(protocol):  # type: ignore[misc]
        # How much of a head has come; None while none is expected.
        _head_bytes: int | None = None
        _timer: asyncio.TimerHandle | None = None
        _is_in_message = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._begin_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end_head()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            self._is_in_message = True
            self._begin_head()
            super().on_message_begin()

        def on_message_complete(self) -> None:
            self._is_in_message = False
            super().on_message_complete()

        def on_headers_complete(self) -> None:
            self._end_head()
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            if not self._is_in_message and self._head_bytes is None:
                # Empty lines before a request begin none for the parser, and end the keep-alive.
                self._begin_head()
            # Heads in parts, so that the parser holds one part more than the limit at most.
            while data and not self.transport.is_closing():
                size = len(data) if self._head_bytes is None else _PART_BYTES
                part, data = data[:size], data[size:]
                super().data_received(part)
                if self.transport.get_protocol() is not self:
                    # It is a WebSocket now.
                    return
                if self._head_bytes is not None:
                    self._head_bytes += len(part)
                    if self._head_bytes > _MAX_BYTES:
                        self._refuse()

        def _begin_head(self) -> None:
            self._end_head()
            self._head_bytes = 0
            self._timer = self.loop.call_later(seconds, self.transport.close)

        def _end_head(self) -> None:
            self._head_bytes = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _refuse(self) -> None:
            # Not in the middle of the response before.
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    return Bounded
