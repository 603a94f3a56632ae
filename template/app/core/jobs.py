"""Jobs: how domains declare work for the worker processes and hand it over with their commit."""

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import httpx2
import structlog
from pydantic import BaseModel, Field, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import outbox
from app.core.database import Database
from app.core.settings import Section
from app.core.telemetry import SpanKind, carry, span

P = TypeVar("P", bound=BaseModel)


class JobSettings(Section):
    """How workers do their jobs."""

    JOB_CONCURRENCY: int = Field(
        default=10, ge=1, le=1000, description="How many jobs one worker process runs at once."
    )
    JOB_LEASE_SECONDS: float = Field(
        default=10,
        ge=1,
        le=600,
        description="How long after a worker's death, or the loss of the queue, its jobs are "
        "started again elsewhere.",
    )
    JOB_RETENTION_SECONDS: int = Field(
        default=7 * 86_400,
        ge=60,
        le=315_360_000,
        description="How long finished jobs are kept, so that their ids are not used again.",
    )
    DEAD_LETTER_RETENTION_SECONDS: int = Field(
        default=90 * 86_400,
        ge=3600,
        le=315_360_000,
        description="How long jobs that were given up are kept for somebody to look at them.",
    )
    JOB_ROLLOUT_SECONDS: int = Field(
        default=3600,
        ge=0,
        le=31_536_000,
        description="How long a job that a worker's release does not know waits for a worker that "
        "does: longer than old and new releases work side by side.",
    )
    WORKER_HEARTBEAT_FILE: Path | None = Field(
        default=None,
        description="Where a worker shows that it is alive; in the system's folder for temporary "
        "files by default. Workers on one machine need different ones to be told apart.",
    )
    WORKER_METRICS_PORT: int = Field(
        default=0,
        ge=0,
        le=65_535,
        description="Where a worker answers `/metrics`; 0 for nowhere.",
    )


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a job is tried, and how long it waits in between.

    Exponential backoff with full jitter: before try n + 1 it waits for a random time of up to
    `base_seconds * 2**(n - 1)`, at most `cap_seconds`, so that many jobs that failed together do
    not come back together.
    """

    max_tries: int = 5
    base_seconds: float = 1.0
    cap_seconds: float = 60.0

    def delay(self, tries: int) -> timedelta:
        """How long to wait after `tries` failed tries."""
        # The exponent is bounded because a float is not.
        ceiling = min(self.cap_seconds, self.base_seconds * 2 ** min(tries - 1, 32))
        return timedelta(seconds=random.uniform(0, ceiling))


@dataclass(frozen=True, slots=True)
class JobContext:
    """What a job works with.

    What it writes through `session` takes effect exactly once: the transaction also marks the job
    as done, and is rolled back when another worker was faster. Anything else, such as a call to
    another service, may happen again after a failure: send `job_id` along as idempotency key.

    The session's transaction begins with its first statement. Compute before it, and read through
    `database.read_only()` what takes long: a transaction that writes is in the way of others.

    `state` has the settings and what app/domain_resources.py has opened, as that of a request has.
    """

    job_id: str
    tries: int
    session: AsyncSession
    database: Database
    http_client: httpx2.AsyncClient
    settings: JobSettings
    state: Mapping[str, Any] = field(default_factory=dict)


class PayloadMismatchError(Exception):
    """The stored payload does not fit this release's model of it."""


class UnfinishedError(Exception):
    """Raised by a handler that has more to do than one try should, and has kept what it did.

    What it wrote through its session is rolled back, so that has to be in transactions of its own.
    The job goes on soon, after others had their turn; neither a try nor a failure is counted.
    """


Handler = Callable[[P, JobContext], Awaitable[None]]
DeadLetterHandler = Callable[[P, AsyncSession], Awaitable[None]]


@dataclass(frozen=True)
class Job(Generic[P]):
    """A kind of job; made by `@job`."""

    name: str
    payload: type[P]
    handler: Handler[P]
    retry_on: tuple[type[Exception], ...]
    retry: RetryPolicy
    timeout_seconds: float
    dead_letter_handlers: list[DeadLetterHandler[P]] = field(default_factory=list)

    async def enqueue(
        self,
        session: AsyncSession,
        payload: P,
        *,
        job_id: str | None = None,
        ordering_key: str | None = None,
        delay: timedelta = timedelta(),
    ) -> bool:
        """Have a worker do this once the transaction of `session` has committed, and only then.

        Args:
            session: The transaction that the job belongs to.
            payload: What the handler gets; kept in the database as JSON.
            job_id: Makes it unique: while a job with this id waits, runs or is kept
                (`JOB_RETENTION_SECONDS`) further ones are ignored. Random when omitted.
            ordering_key: Jobs with the same key run one after the other, in the order of their
                transactions as long as these exclude each other, for example by changing the same
                row. One that waits for its next try holds up those behind it.
            delay: The least time to wait before the first try.

        Returns:
            Whether it was added; `False` when there is a job with this `job_id` already.
        """
        bound = structlog.contextvars.get_contextvars()
        cause = {"request_id": str(bound["request_id"])} if "request_id" in bound else {}
        with span(f"enqueue {self.name}", SpanKind.PRODUCER):
            return await outbox.add(
                session,
                name=self.name,
                payload=payload.model_dump(mode="json"),
                # What follows a request into its jobs.
                context={**cause, **carry()},
                delay=delay,
                job_id=job_id,
                ordering_key=ordering_key,
            )

    def load(self, payload: dict[str, Any]) -> P:
        """Read a payload as it is stored.

        Raises:
            PayloadMismatchError: it is one of another release, or of nobody's; quotes no value.
        """
        try:
            # Strict about fields: what an unknown one would have asked for must not be left undone.
            return self.payload.model_validate(payload, extra="forbid")
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, problem['loc'])) or 'payload'}: {problem['msg']}"
                for problem in error.errors(include_input=False, include_url=False)
            )
            raise PayloadMismatchError(problems) from None

    def on_dead_letter(self, handler: DeadLetterHandler[P]) -> DeadLetterHandler[P]:
        """Decorate what to do when the job is given up, in the transaction that records it."""
        self.dead_letter_handlers.append(handler)
        return handler


def job(
    *,
    name: str,
    payload: type[P],
    retry_on: tuple[type[Exception], ...] = (),
    retry: RetryPolicy = RetryPolicy(),
    timeout_seconds: float = 10,
) -> Callable[[Handler[P]], Job[P]]:
    """Decorate the handler of a kind of job in a domain's `jobs.py`, where the worker finds it.

    Args:
        name: Unique and for good: it is stored with the jobs that wait.
        payload: The model of what the handler needs to know. A stored payload that does not fit
            it is one of another release: it is left to workers that know it, for
            `JOB_ROLLOUT_SECONDS`, and then becomes a dead letter.
        retry_on: Errors that may pass by themselves. Timeouts and a database that is unavailable
            always count; any other error makes a dead letter at once.
        retry: How often and when.
        timeout_seconds: How long one try may take.
    """

    def define(handler: Handler[P]) -> Job[P]:
        return Job(name, payload, handler, retry_on, retry, timeout_seconds)

    return define


class Tick(BaseModel):
    """The payload of periodic jobs."""

    scheduled_for: datetime = Field(description="The minute, the same in every worker.")


@dataclass(frozen=True)
class PeriodicJob:
    """A job that comes with the clock; made by `@periodic`."""

    job: Job[Tick]
    minutes: frozenset[int]
    hours: frozenset[int] | None

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """The last of its minutes that began after the one moment and not after the other (UTC)."""
        moment = until.replace(second=0, microsecond=0)
        # Whatever its hours, it comes at least once a day.
        after = max(after, until - timedelta(days=1))
        while moment > after:
            if moment.minute in self.minutes and (self.hours is None or moment.hour in self.hours):
                return moment
            moment -= timedelta(minutes=1)
        return None


def periodic(
    *,
    name: str,
    minutes: Iterable[int],
    hours: Iterable[int] | None = None,
    retry_on: tuple[type[Exception], ...] = (),
    retry: RetryPolicy = RetryPolicy(),
    timeout_seconds: float = 60,
) -> Callable[[Handler[Tick]], PeriodicJob]:
    """Decorate a job that is enqueued at these minutes (0..59) of these hours (0..23, UTC).

    However many workers there are, it is enqueued once each time. While none of them reaches the
    database it is not, and only the last that was missed comes later; a worker that starts looks
    back for one minute. So let each run do what the ones before it should have done. `hours`
    defaults to every hour, the rest is as for `job`.
    """

    def define(handler: Handler[Tick]) -> PeriodicJob:
        definition = Job(name, Tick, handler, retry_on, retry, timeout_seconds)
        when = None if hours is None else frozenset(hours)
        return PeriodicJob(definition, frozenset(minutes), when)

    return define


@dataclass(frozen=True)
class JobRegistry:
    """The jobs that a worker knows, by name."""

    jobs: dict[str, Job[Any]]
    periodic: tuple[PeriodicJob, ...]

    @classmethod
    def of(cls, modules: Iterable[ModuleType]) -> "JobRegistry":
        """Collect the jobs that these modules define or import.

        Raises:
            ValueError: when two jobs have the same name.
        """
        values = [value for module in modules for value in vars(module).values()]
        periodic_jobs = {id(value): value for value in values if isinstance(value, PeriodicJob)}
        found = [value for value in values if isinstance(value, Job)]
        found += [each.job for each in periodic_jobs.values()]
        jobs: dict[str, Job[Any]] = {}
        for definition in found:
            if jobs.setdefault(definition.name, definition) is not definition:
                raise ValueError(f"two jobs have the name {definition.name}")
        return cls(jobs, tuple(periodic_jobs.values()))
