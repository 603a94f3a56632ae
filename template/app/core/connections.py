"""Limits on connections, in the server: how many, how long without a request, how they end."""

import sys
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

from app.core.exchange import PROBES, SERVER_RECEIVE
from app.core.http_settings import HttpSettings
from app.core.uvicorn_config import uvicorn_config

# uvicorn's own, alone and in another server's workers; what a command line gave is left alone.
_DEFAULT_KEEP_ALIVE: Final = (5, 2)
# For a request that may be on its way.
_IDLE_SECONDS: Final = 0.5
# Each needs a file for as long, too.
_REFUSED_AT_ONCE: Final = 50
_LOG_SECONDS: Final = 10.0
_PROBES: Final = tuple(path.encode() for path in PROBES)

logger = structlog.get_logger(__name__)


def limit_connections(settings: HttpSettings, is_draining: Callable[[], bool]) -> None:
    """Have uvicorn hold `MAX_CONNECTIONS`, each for `KEEP_ALIVE_SECONDS` after a response.

    Call it before the server's signal handlers are replaced. It is for uvicorn with httptools;
    elsewhere nothing happens.

    Args:
        settings: The limits.
        is_draining: Whether the service is about to end.
    """
    config = uvicorn_config()
    protocol: Any = getattr(config, "http_protocol_class", None)
    if not hasattr(protocol, "on_message_begin"):
        return
    if config.timeout_keep_alive in _DEFAULT_KEEP_ALIVE:
        config.timeout_keep_alive = settings.KEEP_ALIVE_SECONDS
    config.http_protocol_class = counted(protocol, affordable(settings), is_draining)


def affordable(settings: HttpSettings) -> int:
    """`MAX_CONNECTIONS`, or less: a quarter of the open files are for everything else."""
    if sys.platform == "win32":
        return settings.MAX_CONNECTIONS
    from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit  # noqa: PLC0415

    files, _ = getrlimit(RLIMIT_NOFILE)
    if files == RLIM_INFINITY:
        return settings.MAX_CONNECTIONS
    return min(settings.MAX_CONNECTIONS, files * 3 // 4)


def counted(protocol: Any, most: int, is_draining: Callable[[], bool]) -> Any:  # noqa: C901
    """The protocol with a limit on how many connections there are, and with an orderly end.

    Past the limit, the connection that has been without a request for the longest is closed. Where
    each has one, or has only just come, the newest is answered 503, unless it is a probe, whose
    failure would end the process. What comes when many wait for that answer is closed.

    Args:
        protocol: uvicorn's for httptools.
        most: How many connections there may be, WebSockets included.
        is_draining: Whether the service is about to end, and responses end their connections.
    """
    # Since when connections have had no request; the longest comes first.
    idle: dict[Any, float] = {}
    told_at = -_LOG_SECONDS

    def make_room(now: float) -> bool:
        nonlocal told_at
        if now - told_at >= _LOG_SECONDS:
            told_at = now
            logger.warning("connection_limit_reached", limit=most, idle=len(idle))
        longest, since = next(iter(idle.items()), (None, now))
        if longest is None or now - since < _IDLE_SECONDS:
            return False
        del idle[longest]
        longest.transport.abort()
        return True

    class Counted(protocol):  # type: ignore[misc]
        _is_refused = False
        _is_last = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            now = time.monotonic()
            idle[self] = now
            if len(self.connections) > most and not make_room(now):
                self._is_refused = True
                if len(self.connections) > most + _REFUSED_AT_ONCE:
                    transport.abort()
                self.loop.call_later(_IDLE_SECONDS, self._close_idle)

        def connection_lost(self, exc: Exception | None) -> None:
            idle.pop(self, None)
            super().connection_lost(exc)

        def _should_upgrade(self) -> bool:
            # A handshake is a GET (RFC 6455, section 4.1); to anything else uvicorn would give no
            # answer at all. Without its `Upgrade` it is a request like any (RFC 9110, section 7.8).
            return (
                not self._is_refused
                and self.scope["method"] == "GET"
                and bool(super()._should_upgrade())
            )

        def on_headers_complete(self) -> None:
            idle.pop(self, None)
            self._is_refused = self._is_refused and not self.url.startswith(_PROBES)
            if self._is_refused:
                # uvicorn's own limit, which it answers 503, is one for all connections.
                self.limit_concurrency = 0
            super().on_headers_complete()
            # It has none if the request is a handshake.
            if self.cycle is not None:
                self.scope[SERVER_RECEIVE] = self.cycle.receive
                if self._is_last or is_draining():
                    self.cycle.keep_alive = False

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle.response_complete:
                idle[self] = time.monotonic()

        def shutdown(self) -> None:
            # A request may be on its way; the client could not know whether to repeat it.
            self._is_last = True
            if self in idle:
                self.loop.call_later(_IDLE_SECONDS, self._close_idle)
            else:
                super().shutdown()

        def _close_idle(self) -> None:
            if self in idle:
                self.transport.close()

    return Counted
