"""Work beside the requests: tasks that are never lost sight of, and periodic jobs."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Self

import anyio
import structlog

from app.core.deadline import leave_deadline
from app.core.settings import AppSettings
from app.core.telemetry import annotate, span

Job = Callable[[], Awaitable[object]]

# Cancelled tasks get this long to roll back and to let a COMMIT that is under way finish.
_CANCEL_GRACE_SECONDS = 5.0
_JITTER = 0.1

logger = structlog.get_logger(__name__)


class RunnerClosedError(RuntimeError):
    """Work was handed to the runner after it had been closed; it will not be done."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} came after the background runner had been closed")


class BackgroundRunner:
    """Runs work beside the requests, in memory: a process that is killed loses what is queued.

    As a context manager it drains at exit: periodic jobs stop first, then everything that was
    spawned, by other tasks while draining too, may finish within `SHUTDOWN_TIMEOUT_SECONDS`;
    what is left is cancelled and logged by name.

    Args:
        settings: How long draining may take.
        max_concurrency: How many tasks run at the same time; further ones wait in line.
    """

    def __init__(self, settings: AppSettings, max_concurrency: int = 10) -> None:
        self._drain_seconds = settings.SHUTDOWN_TIMEOUT_SECONDS
        self._slots = asyncio.Semaphore(max_concurrency)
        # Also keeps the tasks alive: the event loop itself holds only weak references.
        self._tasks: dict[asyncio.Task[None], anyio.CancelScope] = {}
        self._stopping = asyncio.Event()
        self._closed = False
        self._lost: list[str] = []

    @property
    def stopping(self) -> bool:
        """Whether exit has begun."""
        return self._stopping.is_set()

    def spawn(self, name: str, job: Job, *, after: float = 0) -> None:
        """Run `job` soon, with the caller's context variables; its errors are logged.

        Args:
            name: What the logs call it; not unique.
            job: Called without arguments when its turn has come.
            after: How many seconds to wait before it lines up; the beginning of exit ends the wait.

        Raises:
            RunnerClosedError: the runner has finished draining.
        """
        if self._closed:
            logger.error("background_task_refused", task=name)
            raise RunnerClosedError(name)
        # Decided here: the task itself may start only after exit has begun.
        wait: Job | None = None
        if after:
            wait = partial(anyio.sleep if self.stopping else self._stops_within, after)
        self._start(name, partial(self._run_in_turn, name, job, wait))

    def every(self, seconds: float, name: str, job: Job) -> None:
        """Run `job` about every `seconds`, give or take a tenth, until exit begins.

        Runs of one job never overlap, and a failed run does not end the series. The first comes
        at a random moment within the first period, so that replicas do not run in step, and not
        at once, so that a process that has just started answers first.

        Raises:
            RunnerClosedError: the runner has finished draining.
        """
        if self._closed:
            raise RunnerClosedError(name)
        self._start(name, partial(self._run_periodically, seconds, name, job))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        deadline = time.monotonic() + self._drain_seconds
        while self._tasks and (remaining := deadline - time.monotonic()) > 0:
            await asyncio.wait(self._tasks, timeout=remaining)
        self._closed = True
        if self._tasks:
            await self._cancel()

    async def _cancel(self) -> None:
        tasks = dict(self._tasks)
        for scope in tasks.values():
            scope.cancel()
        _, stubborn = await asyncio.wait(tasks, timeout=_CANCEL_GRACE_SECONDS)
        self._lost.extend(task.get_name() for task in stubborn)
        if self._lost:
            logger.error("background_tasks_lost", tasks=sorted(self._lost), count=len(self._lost))

    def _start(self, name: str, work: Job) -> None:
        scope = anyio.CancelScope()
        # A new task inherits a copy of the caller's context variables, such as the request id.
        task = asyncio.create_task(self._guard(name, work, scope), name=name)
        self._tasks[task] = scope
        task.add_done_callback(self._tasks.pop)

    async def _guard(self, name: str, work: Job, scope: anyio.CancelScope) -> None:
        leave_deadline()
        # A scope, unlike Task.cancel(), respects the shield around a COMMIT.
        with scope:
            await work()
        if scope.cancelled_caught:
            self._lost.append(name)

    async def _run_in_turn(self, name: str, job: Job, wait: Job | None) -> None:
        if wait:
            await wait()
        async with self._slots:
            await self._run(name, job)

    async def _run_periodically(self, seconds: float, name: str, job: Job) -> None:
        delay = seconds * random.uniform(_JITTER, 1)
        while not await self._stops_within(delay):
            await self._run(name, job)
            delay = seconds * random.uniform(1 - _JITTER, 1 + _JITTER)

    async def _run(self, name: str, job: Job) -> None:
        with span(name):
            try:
                await job()
            except Exception as error:
                annotate(error=error)
                logger.exception("background_task_failed", task=name)

    async def _stops_within(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            await self._stopping.wait()
        return self._stopping.is_set()
