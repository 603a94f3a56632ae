"""The time between a termination signal and the server's own shutdown, in which load moves away."""

import asyncio
import math
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import anyio
import structlog

from app.core.settings import AppSettings
from app.core.uvicorn_config import uvicorn_config

_SIGNALS: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)
# How late a supervisor passes SIGTERM on to a process that has got the signal already. uvicorn's
# looks twice a second, and may be waiting for another worker's sign of life before.
_REPEAT_SECONDS = 5.0
_Handler = Callable[[int, FrameType | None], object]

logger = structlog.get_logger(__name__)


@contextmanager
def drain_on_sigterm(
    settings: AppSettings,
    callback: Callable[[], None],
    before_stop: Callable[[], Awaitable[None]] | None = None,
) -> Iterator[None]:
    """Call `callback` on the first SIGTERM or SIGINT and hand it to the server after the drain.

    The server stops accepting as soon as it learns of the signal, while a load balancer goes on
    sending until it has seen a readiness of 503. So for `SHUTDOWN_DRAIN_SECONDS` the signal is
    held back. A second signal ends the drain at once. A SIGTERM within five seconds of the first
    signal is no second one: a whole process group is signalled (by systemd, by Ctrl+C), and then
    a supervisor passes it on (uvicorn with `--workers`, `uv run`).

    What the server would cut short, such as connections without an end, is ended by `before_stop`:
    it runs after the drain, for `SHUTDOWN_TIMEOUT_SECONDS` at most, and before the server learns
    of the signal. No further signal cuts it short. What comes after it goes straight to the server,
    which for a further SIGINT stops waiting for requests.

    The server's patience with requests in flight is `SHUTDOWN_TIMEOUT_SECONDS`, too, unless it was
    started with one of its own: uvicorn's default is to wait for ever.

    Enter it in the event loop, after the server has installed its handlers (uvicorn does so
    before the lifespan). Where there is none, or outside the main thread, nothing happens.
    """
    server_handlers: dict[int, _Handler] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            # default_int_handler is Python's own Ctrl+C, not a server's.
            if callable(handler) and handler is not signal.default_int_handler:
                server_handlers[number] = handler
    if not server_handlers:
        yield
        return

    _bound_patience(settings.SHUTDOWN_TIMEOUT_SECONDS)
    drain = _Drain(settings, callback, before_stop, server_handlers)
    for number in server_handlers:
        signal.signal(number, drain.on_signal)
    try:
        yield
    finally:
        drain.cancel()
        for number, handler in server_handlers.items():
            # Someone who came later is left alone. Bound methods are compared by ==.
            if signal.getsignal(number) == drain.on_signal:
                signal.signal(number, handler)


def _bound_patience(seconds: float) -> None:
    config = uvicorn_config()
    if config is not None and getattr(config, "timeout_graceful_shutdown", 0) is None:
        config.timeout_graceful_shutdown = math.ceil(seconds)


class _Drain:
    def __init__(
        self,
        settings: AppSettings,
        callback: Callable[[], None],
        before_stop: Callable[[], Awaitable[None]] | None,
        server_handlers: dict[int, _Handler],
    ) -> None:
        self._seconds = settings.SHUTDOWN_DRAIN_SECONDS
        self._stop_seconds = settings.SHUTDOWN_TIMEOUT_SECONDS
        self._callback = callback
        self._before_stop = before_stop
        self._server_handlers = server_handlers
        self._loop = asyncio.get_running_loop()
        self._signalled_at: float | None = None
        self._handed_over = False
        self._timer: asyncio.TimerHandle | None = None
        self._stopping: asyncio.Task[None] | None = None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        # A signal can arrive in the middle of any statement, such as one that holds a log's
        # lock: only the loop may act on it.
        self._loop.call_soon_threadsafe(self._act, number, frame)

    def _act(self, number: int, frame: FrameType | None) -> None:
        now = self._loop.time()
        if self._signalled_at is None:
            self._signalled_at = now
            self._begin(number, frame)
        elif number == signal.SIGTERM and now - self._signalled_at < _REPEAT_SECONDS:
            logger.debug("signal_repeated")
        elif self._handed_over:
            self._hand_over(number, frame)
        elif self._timer is not None:
            self._timer.cancel()
            self._stop(number, frame)

    def _begin(self, number: int, frame: FrameType | None) -> None:
        self._callback()
        if self._seconds == 0:
            self._stop(number, frame)
            return
        logger.info("draining", seconds=self._seconds, signal=signal.Signals(number).name)
        self._timer = self._loop.call_later(self._seconds, self._stop, number, frame)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._timer = None
        if self._before_stop is None:
            self._hand_over(number, frame)
            return
        self._stopping = self._loop.create_task(self._prepare(self._before_stop))
        self._stopping.add_done_callback(
            # Cancelled is what the server has not waited for.
            lambda task: None if task.cancelled() else self._hand_over(number, frame)
        )

    async def _prepare(self, before_stop: Callable[[], Awaitable[None]]) -> None:
        try:
            with anyio.move_on_after(self._stop_seconds):
                await before_stop()
        except Exception:
            logger.exception("shutdown_not_prepared")

    def _hand_over(self, number: int, frame: FrameType | None) -> None:
        self._handed_over = True
        self._server_handlers[number](number, frame)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._stopping is not None:
            self._stopping.cancel()
