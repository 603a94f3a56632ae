"""The end of connections whose client does not read, which no route and no ASGI message can see."""

import socket
from contextlib import suppress
from typing import Any, Final

from app.core.http_settings import HttpSettings
from app.core.uvicorn_config import uvicorn_config

# Linux has it.
_OPTION: Final[int | None] = getattr(socket, "TCP_USER_TIMEOUT", None)


def drop_unread(settings: HttpSettings) -> None:
    """Have connections dropped on which nothing is read for `SEND_TIMEOUT_SECONDS`.

    The server waits for such a client for ever: in the middle of a stream, and after the end of
    an answer as well, with the rest of it in memory and the connection open. The system's own
    limit covers all of that, WebSockets included, and costs nothing per request.

    Call it before the server's signal handlers are replaced. It is for uvicorn on Linux; elsewhere
    nothing happens. On a Unix socket it is the proxy in front that decides.
    """
    config = uvicorn_config()
    protocol: Any = getattr(config, "http_protocol_class", None)
    option = _OPTION
    if protocol is None or option is None:
        return
    milliseconds = round(settings.SEND_TIMEOUT_SECONDS * 1000)

    class Protocol(protocol):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            connection = transport.get_extra_info("socket")
            # Not every event loop's transport has one.
            if connection and connection.family != getattr(socket, "AF_UNIX", None):
                # The client may be gone already.
                with suppress(OSError):
                    connection.setsockopt(socket.IPPROTO_TCP, option, milliseconds)
            super().connection_made(transport)

    config.http_protocol_class = Protocol
