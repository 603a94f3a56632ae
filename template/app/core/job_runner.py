"""One try of a job: what happens around the handler, and what follows from its outcome."""

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import httpx2
import structlog
from prometheus_client import Histogram
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import dead_letters, outbox
from app.core.database import Database, is_unavailable
from app.core.job_gate import JobGate
from app.core.job_leases import JobLeases
from app.core.job_rollout import next_offer
from app.core.job_task import GRACE_SECONDS, HandlerTasks, describe
from app.core.jobs import (
    Job,
    JobContext,
    JobRegistry,
    JobSettings,
    PayloadMismatchError,
    UnfinishedError,
)
from app.core.metrics import SECONDS
from app.core.outbox import OutboxJob, SupersededError, Ticket
from app.core.telemetry import SpanKind, annotate, span

# A worker that has to end does not wait for a database that hangs.
_CLEANUP_SECONDS = 5
# How many workers a job may lose. More than it may fail, as another may be what kills them.
_MAX_LOST = 10
_MAX_TRACEBACK = 20_000
# How long others go first; the queue must have forgotten the ticket by then.
_TURN = timedelta(seconds=0.3)

_TRIES = Histogram(
    "job_try_duration_seconds",
    "Tries of jobs, by what came of them.",
    ["name", "outcome"],
    buckets=(*SECONDS, 60, 300),
)

logger = structlog.get_logger(__name__)


class UnknownJobError(Exception):
    """This release of the service has no job of that name."""


class WorkerLostError(Exception):
    """Too many workers were gone before the job's tries had an end; it may be what kills them."""


def _do_nothing() -> None:
    pass


class JobRunner:
    """Runs jobs, each in a transaction of its own that also marks it as done.

    Args:
        registry: What can be run.
        database: Where the outbox is.
        http_client: For the handlers.
        settings: How long a job stays with a worker that gives no sign of life.
        wake_relay: Called when a job ends that others may have waited for.
        state: For the handlers.
    """

    def __init__(
        self,
        registry: JobRegistry,
        database: Database,
        http_client: httpx2.AsyncClient,
        settings: JobSettings,
        *,
        wake_relay: Callable[[], None] = _do_nothing,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._jobs = registry.jobs
        self._database = database
        self._http_client = http_client
        self._settings = settings
        self._lease = timedelta(seconds=settings.JOB_LEASE_SECONDS)
        self._wake_relay = wake_relay
        self._state = {"settings": settings, **(state or {})}
        self._rollout = timedelta(seconds=settings.JOB_ROLLOUT_SECONDS)
        self._leases = JobLeases(database, settings.JOB_LEASE_SECONDS)
        self._gate = JobGate()
        self._tasks = HandlerTasks()

    @property
    def stuck(self) -> int:
        """How many handlers go on although they were cancelled."""
        return self._tasks.stuck

    async def run(self, ticket: Ticket) -> None:
        """Do what the ticket stands for, unless that is done or someone else has begun it.

        Failures of the job end in the outbox or the dead letters, not here.

        Raises:
            asyncio.CancelledError: the worker has to end; the job has been given back.
            Exception: the database cannot be reached; the job comes up again by itself.
        """
        held = Ticket(ticket.id, ticket.tries + 1)
        if held in self._leases:
            # Delivered twice.
            return
        self._leases.hold(held)
        try:
            async with self._gate.enter(alone=ticket.suspect):
                await self._begin(ticket, held)
        except asyncio.CancelledError:
            await self._give_back(held)
            raise
        finally:
            self._leases.release(held)

    async def keep_leases(self) -> None:
        """Tell the relays, until cancelled, that the jobs in hand are being worked on."""
        await self._leases.keep()

    async def _begin(self, ticket: Ticket, held: Ticket) -> None:
        async with self._database.transaction() as session:
            row = await outbox.begin_try(session, ticket, self._lease)
        if row is None:
            logger.debug("job_ticket_stale", outbox_id=ticket.id)
            return
        with (
            structlog.contextvars.bound_contextvars(
                **row.context, job=row.name, job_id=row.job_id, job_try=row.tries
            ),
            # In the trace of what has handed it over; a trace of its own without one.
            span(f"job {row.name}", SpanKind.CONSUMER, cause=row.context, job__try=row.tries),
        ):
            await self._try(row, held)
        if row.ordering_key is not None:
            self._wake_relay()

    async def _try(self, row: OutboxJob, held: Ticket) -> None:
        definition = self._jobs.get(row.name)
        started = time.monotonic()
        outcome = "done"
        try:
            await self._handle(definition, row, held)
        except SupersededError:
            outcome = "superseded"
            logger.warning("job_superseded")
        except UnfinishedError:
            outcome = "unfinished"
            await self._give_back(held, _TURN)
        except Exception as error:  # noqa: BLE001
            outcome = await self._fail(row, held, definition, error)
        seconds = time.monotonic() - started
        _TRIES.labels(row.name, outcome).observe(seconds)
        annotate(job__outcome=outcome)
        if outcome == "done":
            logger.info("job_done", seconds=round(seconds, 3))

    async def _handle(self, definition: Job[Any] | None, row: OutboxJob, held: Ticket) -> None:
        if definition is None:
            raise UnknownJobError(f"there is no job {row.name!r}")
        # Workers of a release before 1.4 do not count failures, of which there are never more.
        limit = max(_MAX_LOST, definition.retry.max_tries)
        if (lost := row.tries - 1 - row.failures) >= limit:
            raise WorkerLostError(f"no outcome of {lost} of its {row.tries - 1} tries")
        payload = definition.load(row.payload)

        async def work() -> None:
            async with self._database.transaction() as session:
                context = JobContext(
                    job_id=row.job_id,
                    tries=row.tries,
                    session=session,
                    database=self._database,
                    http_client=self._http_client,
                    settings=self._settings,
                    state=self._state,
                )
                await definition.handler(payload, context)
                await outbox.finish(session, held)

        await self._run(work, definition, held)

    async def _run(
        self, work: Callable[[], Awaitable[None]], definition: Job[Any], held: Ticket
    ) -> None:
        # Beyond its time it is nobody's: it is stuck, or what blocks the event loop is.
        self._leases.hold(held, definition.timeout_seconds + 2 * GRACE_SECONDS)
        await self._tasks.run(definition.name, work, definition.timeout_seconds)

    async def _fail(
        self, row: OutboxJob, held: Ticket, definition: Job[Any] | None, error: Exception
    ) -> str:
        annotate(error=error)
        if definition is None or isinstance(error, PayloadMismatchError):
            delay = next_offer(row, self._lease, self._rollout)
            store, event, outcome = outbox.refuse, "job_refused", "refused"
        else:
            delay = _next_try(row, definition, error)
            store, event, outcome = outbox.postpone, "job_will_be_retried", "failed"
        reason = describe(error)
        try:
            if delay is None:
                # The end names the error, which may be of any length.
                trace = "".join(traceback.format_exception(error))[-_MAX_TRACEBACK:]
                await self._bury(row, held, definition, reason, trace)
                outcome = "dead_letter"
                logger.error("job_became_dead_letter", error=reason, exception=trace)
            else:
                async with self._database.transaction() as session:
                    await store(session, held, delay)
                seconds = round(delay.total_seconds(), 3)
                logger.warning(event, error=reason, in_seconds=seconds)
        except SupersededError:
            outcome = "superseded"
            logger.warning("job_superseded", error=reason)
        except Exception as problem:
            if not is_unavailable(problem):
                raise
            # The lease ends, and the job comes up again.
            logger.exception("job_outcome_not_stored", error=reason)
        return outcome

    async def _bury(
        self, row: OutboxJob, held: Ticket, definition: Job[Any] | None, reason: str, trace: str
    ) -> None:
        async def bury(*handlers: Callable[[AsyncSession], Awaitable[None]]) -> None:
            async with self._database.transaction() as session:
                # First: one that gets stuck must not hold a lock on the job.
                for handle in handlers:
                    await handle(session)
                await dead_letters.bury(session, row, reason, trace)

        handlers = _dead_letter_handlers(definition, row)
        if definition is None or not handlers:
            await bury()
            return
        try:
            await self._run(partial(bury, *handlers), definition, held)
        except SupersededError:
            raise
        except Exception as problem:
            if is_unavailable(problem):
                raise
            # A handler of dead letters that fails must not keep the job alive for ever.
            logger.exception("dead_letter_handler_failed")
            await bury()

    async def _give_back(self, held: Ticket, delay: timedelta = timedelta()) -> None:
        with anyio.move_on_after(_CLEANUP_SECONDS, shield=True) as scope:
            try:
                async with self._database.transaction() as session:
                    await outbox.give_back(session, held, delay)
            except SupersededError:
                return
            except Exception:
                # The lease ends, and the job comes up again; it has lost a try.
                logger.exception("job_not_given_back", outbox_id=held.id)
            else:
                logger.info("job_given_back", outbox_id=held.id)
        if scope.cancelled_caught:
            logger.error("job_not_given_back", outbox_id=held.id)


def _dead_letter_handlers(
    definition: Job[Any] | None, row: OutboxJob
) -> list[Callable[[AsyncSession], Awaitable[None]]]:
    if definition is None or not definition.dead_letter_handlers:
        return []
    try:
        payload = definition.load(row.payload)
    except PayloadMismatchError:
        return []
    return [partial(handler, payload) for handler in definition.dead_letter_handlers]


def _next_try(row: OutboxJob, definition: Job[Any], error: Exception) -> timedelta | None:
    """How long to wait for the next try; `None` when there is none."""
    may_pass = isinstance(error, (TimeoutError, *definition.retry_on)) or is_unavailable(error)
    failures = row.failures + 1
    if may_pass and failures < definition.retry.max_tries:
        return definition.retry.delay(failures)
    return None
