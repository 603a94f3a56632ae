"""The queue between relays and workers; with its client the only module that knows ARQ."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import orjson
import structlog
from arq.constants import in_progress_key_prefix
from arq.utils import poll
from arq.worker import Worker, func
from prometheus_client import Gauge
from redis.asyncio import ConnectionPool

from app.core.arq_redis import ConfinedArqRedis
from app.core.job_runner import JobRunner
from app.core.jobs import JobRegistry
from app.core.outbox import Ticket
from app.core.tasks import end_tasks

# Short enough to be sent again within a lease; the backlog waits in the outbox.
_MAX_QUEUED = 1000
_POLL_SECONDS = 0.1
_HEALTH_SECONDS = 5
_RESTART_SECONDS = 1.0
# A little longer than the runner's own limit.
_GIVING_BACK_SECONDS = 6
_RUN = "run"
# Tries are counted in the outbox, which a loss of Redis does not reset.
_NO_LIMIT = 1_000_000
# ARQ adds no ticket while it remembers its id, even one that the server has evicted from the queue.
_TICKET_LIFE = timedelta(minutes=5)
# A ticket may be used from the moment on that the relay's clock shows, by the worker's clock.
_CLOCKS_DIFFER = timedelta(hours=1)

_QUEUED = Gauge(
    "job_queue_length",
    "Jobs that wait for a worker, or are in the hands of one.",
    multiprocess_mode="livemostrecent",
)

logger = structlog.get_logger(__name__)


class QueueSettings(Protocol):
    """What the queue needs to know of the settings."""

    @property
    def JOB_CONCURRENCY(self) -> int: ...  # noqa: N802

    @property
    def JOB_LEASE_SECONDS(self) -> float: ...  # noqa: N802

    @property
    def SHUTDOWN_TIMEOUT_SECONDS(self) -> float: ...  # noqa: N802


class ArqQueue:
    """Takes tickets from relays and, in a worker, has them run.

    What is queued may be lost at any time, and delivered twice: the outbox makes up for both.

    Args:
        settings: How many jobs to run at once, and how long they may take at the end.
        pool: The connections; closed with the queue.
        name: What all of its keys start with; unique in the Redis database.
    """

    def __init__(self, settings: QueueSettings, pool: ConnectionPool, name: str) -> None:
        self._settings = settings
        self._name = name
        # Not `name` itself, where workers of a release before 1.4 would miss the tickets' keys.
        self._queue = f"{name}:queue"
        self._redis = ConfinedArqRedis(
            pool,
            f"{name}:",
            # ARQ's default, pickle, executes what it reads.
            job_serializer=_to_json,
            job_deserializer=orjson.loads,
            default_queue_name=self._queue,
        )
        self.polled_at = 0.0

    async def room(self) -> int:
        """How many more tickets to give it now."""
        return _MAX_QUEUED - await self._length()

    async def measure(self) -> None:
        """Set the metric of its length."""
        _QUEUED.set(await self._length())

    async def _length(self) -> int:
        return int(await self._redis.zcard(self._queue))

    async def push(self, ticket: Ticket) -> None:
        """Add a ticket; does nothing when it is queued already."""
        await self._redis.enqueue_job(
            _RUN,
            ticket.id,
            ticket.tries,
            ticket.suspect,
            _job_id=f"{ticket.id}:{ticket.tries}",
            _defer_until=datetime.now(UTC) - _CLOCKS_DIFFER,
            _expires=_TICKET_LIFE,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._redis.aclose(close_connection_pool=True)

    async def serve(
        self,
        registry: JobRegistry,
        runner: JobRunner,
        stopping: asyncio.Event,
    ) -> None:
        """Run jobs until `stopping` is set and the last ones have ended.

        Then running jobs may finish within `SHUTDOWN_TIMEOUT_SECONDS`; the rest is cancelled and
        goes back. An outage of Redis interrupts the polling only.
        """
        leftover: set[asyncio.Task[Any]] = set()
        stopped_at = time.monotonic()
        while not stopping.is_set():
            worker = self._create_worker(registry, runner)
            polling = asyncio.create_task(worker.async_run())
            waiting = asyncio.create_task(stopping.wait())
            await asyncio.wait({polling, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            stopped_at = time.monotonic()
            if stopping.is_set():
                await _drain(worker, polling)
            leftover |= {task for task in worker.tasks.values() if not task.done()}
            for task in worker.tasks.values():
                task.add_done_callback(_note_failure)
            if not polling.cancelled() and (error := polling.exception()):
                # A new one, as ARQ's worker forgets to free its slots when Redis fails.
                logger.warning("queue_polling_failed", error=f"{type(error).__name__}: {error}")
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), _RESTART_SECONDS)
        # Either ARQ has cancelled them and they give their jobs back, or a former worker has begun
        # them and they may run on until the same deadline.
        remaining = stopped_at + self._settings.SHUTDOWN_TIMEOUT_SECONDS - time.monotonic()
        if leftover:
            await asyncio.wait(leftover, timeout=max(remaining, _GIVING_BACK_SECONDS))
        await end_tasks(*leftover, patience_seconds=_GIVING_BACK_SECONDS)
        with suppress(Exception):
            await self._redis.delete(self._health_key)

    @property
    def _health_key(self) -> str:
        return f"{self._name}:worker:{socket.gethostname()}:{os.getpid()}"

    def _create_worker(self, registry: JobRegistry, runner: JobRunner) -> Worker:
        async def run(ctx: dict[Any, Any], *args: Any, **_: Any) -> None:  # noqa: ARG001
            await runner.run(Ticket(*args))

        # The runner has the jobs' own timeouts; this one is for a runner that hangs. A job may have
        # to wait until another has run alone, and its dead letter has as long again.
        longest = 3 * max((job.timeout_seconds for job in registry.jobs.values()), default=0) + 60
        return _Worker(
            lease_seconds=self._settings.JOB_LEASE_SECONDS,
            on_poll=self._note_poll,
            functions=[func(run, name=_RUN, timeout=longest, max_tries=_NO_LIMIT)],
            # Nor of tickets that expire in the queue: as long as there is one, they are refused.
            keep_result=0,
            queue_name=self._queue,
            redis_pool=self._redis,
            handle_signals=False,
            job_completion_wait=max(1, round(self._settings.SHUTDOWN_TIMEOUT_SECONDS)),
            max_jobs=self._settings.JOB_CONCURRENCY,
            queue_read_limit=_MAX_QUEUED,
            poll_delay=_POLL_SECONDS,
            health_check_interval=_HEALTH_SECONDS,
            health_check_key=self._health_key,
            job_serializer=_to_json,
            job_deserializer=orjson.loads,
            log_results=False,
        )

    def _note_poll(self) -> None:
        self.polled_at = time.time()


class _Worker(Worker):
    """ARQ's worker, with short leases on what it runs.

    It would not touch the jobs of a dead worker for longer than the longest timeout of all jobs.
    """

    def __init__(self, lease_seconds: float, on_poll: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self.in_progress_timeout_s = lease_seconds
        self._lease_seconds = lease_seconds
        self._kept_at = 0.0
        self._on_poll = on_poll

    async def main(self) -> None:
        # ARQ's own asks for the server's INFO before, which the user need not be allowed.
        async for _ in poll(self.poll_delay_s):
            await self._poll_iteration()

    async def heart_beat(self) -> None:
        await super().heart_beat()
        now = time.monotonic()
        if self.tasks and now - self._kept_at > self._lease_seconds / 4:
            self._kept_at = now
            async with self.pool.pipeline(transaction=False) as pipe:
                for job_id in self.tasks:
                    key = in_progress_key_prefix + job_id
                    pipe.pexpire(key, round(self._lease_seconds * 1000))
                await pipe.execute()
        self._on_poll()


async def _drain(worker: Worker, polling: asyncio.Task[None]) -> None:
    drained = asyncio.Event()
    worker.on_stop = lambda _: drained.set()
    # Takes no new jobs, waits for those in hand, then cancels them and the polling.
    worker.handle_sig_wait_for_completion(signal.SIGTERM)
    waiting = asyncio.create_task(drained.wait())
    await asyncio.wait({polling, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if worker.main_task is not None:
        await end_tasks(worker.main_task)


def _note_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()):
        # The job has its outcome; that the queue could not be told of it does not matter.
        logger.warning("queue_not_updated", error=f"{type(error).__name__}: {error}")


def _to_json(value: Any) -> bytes:
    return orjson.dumps(value, default=repr)
