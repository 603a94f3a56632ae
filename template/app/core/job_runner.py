"""One try of a job: what happens around the handler, and what follows from its outcome."""

import asyncio
import random
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import httpx2
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import dead_letters, outbox
from app.core.database import Database, is_unavailable
from app.core.jobs import Job, JobContext, JobRegistry, JobSettings, PayloadMismatchError
from app.core.outbox import OutboxJob, SupersededError, Ticket

# A worker that has to end does not wait for a database that hangs.
_CLEANUP_SECONDS = 5
# How often a job that this release does not know is offered again: at first, and at the most.
_OFFERED_AFTER_SECONDS = (1, 60)

logger = structlog.get_logger(__name__)


class UnknownJobError(Exception):
    """This release of the service has no job of that name."""


class WorkerLostError(Exception):
    """The worker was gone before the last try had an end; perhaps the job is what killed it."""


class HandlerCancelledError(Exception):
    """What the handler waited for was cancelled, which is not the worker's end."""


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
    """

    def __init__(
        self,
        registry: JobRegistry,
        database: Database,
        http_client: httpx2.AsyncClient,
        settings: JobSettings,
        *,
        wake_relay: Callable[[], None] = _do_nothing,
    ) -> None:
        self._jobs = registry.jobs
        self._database = database
        self._http_client = http_client
        self._settings = settings
        self._lease = timedelta(seconds=settings.JOB_LEASE_SECONDS)
        self._wake_relay = wake_relay
        self._rollout = timedelta(seconds=settings.JOB_ROLLOUT_SECONDS)
        self._held: set[Ticket] = set()

    async def run(self, ticket: Ticket) -> None:
        """Do what the ticket stands for, unless that is done or someone else has begun it.

        Failures of the job end in the outbox or the dead letters, not here.

        Raises:
            asyncio.CancelledError: the worker has to end; the job has been given back.
            Exception: the database cannot be reached; the job comes up again by itself.
        """
        held = Ticket(ticket.id, ticket.tries + 1)
        if held in self._held:
            # Delivered twice.
            return
        self._held.add(held)
        try:
            async with self._database.transaction() as session:
                row = await outbox.begin_try(session, ticket, self._lease)
            if row is None:
                logger.debug("job_ticket_stale", outbox_id=ticket.id)
                return
            with structlog.contextvars.bound_contextvars(
                **row.context, job=row.name, job_id=row.job_id, job_try=row.tries
            ):
                await self._try(row, held)
            if row.ordering_key is not None:
                self._wake_relay()
        except asyncio.CancelledError:
            await self._give_back(held)
            raise
        finally:
            self._held.discard(held)

    async def keep_leases(self) -> None:
        """Tell the relays, until cancelled, that the jobs in hand are being worked on."""
        while True:
            await asyncio.sleep(self._settings.JOB_LEASE_SECONDS / 4)
            if not self._held:
                continue
            try:
                async with self._database.transaction() as session:
                    await outbox.keep(session, list(self._held), self._lease)
            except Exception as error:  # noqa: BLE001
                logger.warning("leases_not_kept", error=f"{type(error).__name__}: {error}")

    async def _try(self, row: OutboxJob, held: Ticket) -> None:
        definition = self._jobs.get(row.name)
        started = time.monotonic()
        try:
            await self._handle(definition, row, held)
        except SupersededError:
            logger.warning("job_superseded")
        except Exception as error:  # noqa: BLE001
            await self._fail(row, held, definition, error)
        except asyncio.CancelledError as error:
            if _is_being_cancelled():
                raise
            failure = HandlerCancelledError(str(error))
            failure.__cause__ = error
            await self._fail(row, held, definition, failure)
        else:
            logger.info("job_done", seconds=round(time.monotonic() - started, 3))

    async def _handle(self, definition: Job[Any] | None, row: OutboxJob, held: Ticket) -> None:
        if definition is None:
            raise UnknownJobError(f"there is no job {row.name!r}")
        if row.tries > definition.retry.max_tries:
            raise WorkerLostError(f"no outcome of try {row.tries - 1}")
        payload = definition.load(row.payload)
        # Unlike asyncio's, this timeout respects the shield around a COMMIT that is under way.
        with anyio.fail_after(definition.timeout_seconds):
            async with self._database.transaction() as session:
                context = JobContext(
                    job_id=row.job_id,
                    tries=row.tries,
                    session=session,
                    database=self._database,
                    http_client=self._http_client,
                    settings=self._settings,
                )
                await definition.handler(payload, context)
                await outbox.finish(session, held)

    async def _fail(
        self, row: OutboxJob, held: Ticket, definition: Job[Any] | None, error: Exception
    ) -> None:
        if definition is None or isinstance(error, PayloadMismatchError):
            delay, store, event = self._next_offer(row), outbox.refuse, "job_refused"
        else:
            delay = _next_try(row, definition, error)
            store, event = outbox.postpone, "job_will_be_retried"
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        try:
            if delay is None:
                await self._bury(row, definition, error, reason)
                logger.error("job_became_dead_letter", error=reason, exc_info=error)
            else:
                async with self._database.transaction() as session:
                    await store(session, held, delay)
                seconds = round(delay.total_seconds(), 3)
                logger.warning(event, error=reason, in_seconds=seconds)
        except SupersededError:
            logger.warning("job_superseded", error=reason)
        except Exception as problem:
            if not is_unavailable(problem):
                raise
            # The lease ends, and the job comes up again.
            logger.exception("job_outcome_not_stored", error=reason)

    def _next_offer(self, row: OutboxJob) -> timedelta | None:
        """How long to leave a job to the workers of other releases; `None` when it is given up.

        About as long as it has waited already, so that a worker that comes has it soon.
        """
        now = datetime.now(UTC)
        waited = now - (row.refused_since or now)
        if waited >= self._rollout:
            return None
        least, most = _OFFERED_AFTER_SECONDS
        ceiling = min(max(waited.total_seconds(), least), most)
        return timedelta(seconds=random.uniform(ceiling / 2, ceiling))

    async def _bury(
        self, row: OutboxJob, definition: Job[Any] | None, error: Exception, reason: str
    ) -> None:
        trace = "".join(traceback.format_exception(error))
        try:
            async with self._database.transaction() as session:
                await dead_letters.bury(session, row, reason, trace)
                await _tell(definition, row, session)
        except SupersededError:
            raise
        except Exception as problem:
            if is_unavailable(problem):
                raise
            # A handler of dead letters that fails must not keep the job alive for ever.
            logger.exception("dead_letter_handler_failed")
            async with self._database.transaction() as session:
                await dead_letters.bury(session, row, reason, trace)

    async def _give_back(self, held: Ticket) -> None:
        with anyio.move_on_after(_CLEANUP_SECONDS, shield=True):
            try:
                async with self._database.transaction() as session:
                    await outbox.give_back(session, held)
            except SupersededError:
                return
            except Exception:
                # The lease ends, and the job comes up again; it has lost a try.
                logger.exception("job_not_given_back", outbox_id=held.id)
            else:
                logger.info("job_given_back", outbox_id=held.id)


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _tell(definition: Job[Any] | None, row: OutboxJob, session: AsyncSession) -> None:
    if definition is None or not definition.dead_letter_handlers:
        return
    try:
        payload = definition.load(row.payload)
    except PayloadMismatchError:
        return
    for handler in definition.dead_letter_handlers:
        await handler(payload, session)


def _next_try(row: OutboxJob, definition: Job[Any], error: Exception) -> timedelta | None:
    """How long to wait for the next try; `None` when there is none."""
    may_pass = isinstance(error, (TimeoutError, *definition.retry_on)) or is_unavailable(error)
    if may_pass and row.tries < definition.retry.max_tries:
        return definition.retry.delay(row.tries)
    return None
