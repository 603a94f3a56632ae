"""A handler's own task: whatever somebody's code does in it costs its job, not the worker."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio
import structlog

GRACE_SECONDS = 5.0
"""How long a handler that was cancelled may roll back, and let a COMMIT under way finish."""

_MAX_TEXT = 2000
# Into how many parts a timeout is divided at least, and how long one is at most.
_TICKS = 10
_TICK_SECONDS = 1.0

logger = structlog.get_logger(__name__)


class HandlerCancelledError(Exception):
    """What the handler waited for was cancelled, or itself by itself; not the worker's end."""


class HandlerExitedError(Exception):
    """The handler raised what ends a process, such as `SystemExit`, and has ended its try only."""


class HandlerStuckError(Exception):
    """The handler has not ended although its time was over and it was cancelled."""


class HandlerTasks:
    """Runs the handlers of a worker, each in a task of its own."""

    def __init__(self) -> None:
        self._stuck: set[asyncio.Task[None]] = set()

    @property
    def stuck(self) -> int:
        """How many handlers go on although they were cancelled."""
        return len(self._stuck)

    async def run(
        self, name: str, work: Callable[[], Awaitable[None]], timeout_seconds: float
    ) -> None:
        """Run `work`, for so long at the most; `name` is what the task is called.

        Raises:
            TimeoutError: it took too long and was cancelled.
            HandlerStuckError: it was cancelled and goes on nevertheless; nobody waits for it.
            HandlerCancelledError: it was cancelled by something else.
            HandlerExitedError: it raised what is no `Exception`.
            Exception: what it raised.
            asyncio.CancelledError: the worker has to end; the work was cancelled first.
        """
        outer, inner = anyio.CancelScope(), anyio.CancelScope()

        async def confined() -> None:
            # Scopes, unlike Task.cancel(), respect the shield around a COMMIT.
            with outer, inner, _as_exceptions(outer):
                await work()
            if outer.cancelled_caught:
                raise TimeoutError(f"longer than {timeout_seconds:g} s")

        task = asyncio.create_task(confined(), name=name)
        try:
            await _wait(task, timeout_seconds)
            if not task.done():
                await self._end(task, outer, inner)
        except asyncio.CancelledError:
            await self._end(task, outer, inner)
            raise
        if not task.done():
            raise HandlerStuckError(f"{GRACE_SECONDS:g} s after its end was due")
        if task.cancelled():
            raise HandlerCancelledError
        task.result()

    async def _end(
        self, task: asyncio.Task[None], outer: anyio.CancelScope, inner: anyio.CancelScope
    ) -> None:
        outer.cancel()
        task.add_done_callback(_forget)
        await asyncio.wait({task}, timeout=GRACE_SECONDS)
        if not task.done():
            # Ends anyio's rounds of cancellation, which would take half a core for ever.
            inner.shield = True
            self._stuck.add(task)
            task.add_done_callback(self._stuck.discard)
            logger.error("job_does_not_end", advice="its handler must let CancelledError pass")


async def _wait(task: asyncio.Task[None], timeout_seconds: float) -> None:
    """Wait for the end of the task, for so long at the most.

    What others keep the event loop for beyond a tick is not held against the task: it may have
    been about to end.
    """
    tick = min(timeout_seconds / _TICKS, _TICK_SECONDS)
    waited = 0.0
    while not task.done() and waited < timeout_seconds:
        began = time.monotonic()
        await asyncio.wait({task}, timeout=tick)
        waited += min(time.monotonic() - began, tick)
    if not task.done() and time.monotonic() - began > 2 * tick:
        # What has become due meanwhile comes first.
        await asyncio.wait({task}, timeout=tick)


@contextmanager
def _as_exceptions(scope: anyio.CancelScope) -> Iterator[None]:
    try:
        yield
    except asyncio.CancelledError as error:
        if scope.cancel_called:
            raise
        raise HandlerCancelledError(*error.args[:1]) from error
    except Exception:
        raise
    except BaseException as error:
        # In a task, it would end the event loop.
        raise HandlerExitedError(describe(error)) from error


def _forget(task: asyncio.Task[None]) -> None:
    # Nobody waits for it any more, which asyncio would complain about.
    _ = task.cancelled() or task.exception()


def describe(error: BaseException) -> str:
    """The error's type and text, in a length that fits a log line."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001
        text = "(its text cannot be read)"
    return f"{type(error).__name__}: {text[:_MAX_TEXT]}".removesuffix(": ")
