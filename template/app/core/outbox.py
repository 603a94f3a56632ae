"""The outbox: jobs are rows, written with what they follow from and kept until they are done.

All times are the database's, since the clocks of the processes that compare them need not agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    JSON,
    ColumnElement,
    Index,
    SQLColumnExpression,
    String,
    and_,
    cast,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, aliased, mapped_column
from uuid_utils.compat import uuid7

from app.core.database import SERIAL, Base, clock, is_unique_violation
from app.core.events import Event, record

_PURGE_BATCH = 1000
# So many tries without an outcome make a suspect.
_SUSPECT_AFTER = 3


class OutboxJob(Base):
    """A job that was handed over.

    `due_at` is when to hand it to the queue (again): lost messages and dead workers need no
    detection, since whoever has it in hand keeps moving this time ahead. Null once it is done.

    `tries` counts the tries begun. Who changes a row names the count that they know, so a worker
    that was taken for dead cannot finish what another has started meanwhile.

    `failures` counts those of them that failed. The others have no outcome, since their workers
    were lost, for which the job need not be the cause.

    `refused_since` is when a worker whose release does not know the job first handed it back, as
    long as no other has tried it.
    """

    __tablename__ = "outbox"

    # Grows with each insert: the order of jobs with the same ordering key.
    id: Mapped[int] = mapped_column(SERIAL, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(String(255), unique=True)
    name: Mapped[str] = mapped_column(String(100))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    context: Mapped[dict[str, str]] = mapped_column(JSON)
    ordering_key: Mapped[str | None] = mapped_column(String(255))
    tries: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0, server_default="0")
    due_at: Mapped[datetime | None] = mapped_column(index=True)
    refused_since: Mapped[datetime | None]
    created_at: Mapped[datetime]
    done_at: Mapped[datetime | None] = mapped_column(index=True)

    __table_args__ = (Index(None, "ordering_key", "due_at"),)


class JobsEnqueued(Event):
    """Jobs were committed to the outbox: the relays need not wait for their next look."""

    name: ClassVar[str] = "jobs.enqueued"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What travels through the queue: which row, and how many tries it had when it was sent.

    A suspect has lost several workers and is run alone.
    """

    id: int
    tries: int
    suspect: bool = False


class SupersededError(Exception):
    """Another worker has taken the job over; what this one did must be rolled back."""


def job_id(name: str, id_: UUID) -> str:
    """The id of the one job of this name for the row with this id."""
    return f"{name}:{id_.hex}"


def job_id_column(name: str, id_: SQLColumnExpression[UUID]) -> ColumnElement[str]:
    """The same for the rows of a query."""
    # Databases differ in the dashes.
    return literal(f"{name}:") + func.replace(cast(id_, String), "-", "")


def has_job(job_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether there is a job with this id, waiting, running or done."""
    return exists().where(OutboxJob.job_id == job_id)


def has_unfinished_job(job_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether there is a job with this id that waits or runs."""
    return exists().where(OutboxJob.job_id == job_id, OutboxJob.due_at.is_not(None))


async def add(
    session: AsyncSession,
    *,
    name: str,
    payload: dict[str, Any],
    context: dict[str, str],
    delay: timedelta = timedelta(),
    job_id: str | None = None,
    ordering_key: str | None = None,
) -> bool:
    """Insert a job, due after `delay`; `False` when there is one with this `job_id` already."""
    statement = insert(OutboxJob).values(
        job_id=job_id or uuid7().hex,
        name=name,
        payload=payload,
        context=context,
        ordering_key=ordering_key,
        tries=0,
        due_at=clock(delay),
        created_at=clock(),
    )
    if job_id is None:
        await session.execute(statement)
    else:
        try:
            async with session.begin_nested():
                await session.execute(statement)
        except IntegrityError as error:
            if is_unique_violation(error, "uq_outbox_job_id"):
                return False
            raise
    record(session, JobsEnqueued())
    return True


def is_held_up() -> ColumnElement[bool]:
    """Whether an older job with the same ordering key is not done."""
    older = aliased(OutboxJob)
    return exists().where(
        older.ordering_key == OutboxJob.ordering_key,
        older.id < OutboxJob.id,
        older.due_at.is_not(None),
    )


async def is_due(session: AsyncSession) -> bool:
    """Whether there may be something to hand to the queue; takes no locks."""
    due = exists().where(OutboxJob.due_at <= clock())
    return bool(await session.scalar(select(due)))


async def take_due(
    session: AsyncSession,
    limit: int,
    lease: timedelta,
    only: ColumnElement[bool] | None = None,
) -> Sequence[Ticket]:
    """Take rows to hand to the queue now; they come up again when nobody begins them in time.

    Any number of relays may do this at once. A row waits as long as an older one with its
    ordering key is not done. Of all rows, or of those that meet a condition.
    """
    due = await session.execute(
        select(OutboxJob.id, OutboxJob.tries, OutboxJob.failures)
        .where(OutboxJob.due_at <= clock(), ~is_held_up(), true() if only is None else only)
        # What is overdue for longest, straight from the index: a backlog need not be sorted, nor
        # the rows of past jobs be passed over.
        .order_by(OutboxJob.due_at, OutboxJob.id)
        .limit(limit)
        # Where there are no row locks, a write transaction excludes every other.
        .with_for_update(skip_locked=True, of=OutboxJob)
    )
    tickets = [
        Ticket(id_, tries, suspect=tries - failures >= _SUSPECT_AFTER)
        for id_, tries, failures in due
    ]
    if tickets:
        await session.execute(
            update(OutboxJob)
            .where(OutboxJob.id.in_([ticket.id for ticket in tickets]))
            .values(due_at=clock(lease))
        )
    return tickets


def _is_current(ticket: Ticket) -> ColumnElement[bool]:
    return and_(
        OutboxJob.id == ticket.id,
        OutboxJob.tries == ticket.tries,
        OutboxJob.due_at.is_not(None),
    )


async def begin_try(session: AsyncSession, ticket: Ticket, lease: timedelta) -> OutboxJob | None:
    """Count a try and take the row; `None` when it is done or someone else has begun it.

    Counted at the start, or a job that kills its worker would be tried for ever.
    """
    return await session.scalar(
        update(OutboxJob)
        .where(_is_current(ticket))
        .values(tries=OutboxJob.tries + 1, due_at=clock(lease))
        .returning(OutboxJob)
        .execution_options(synchronize_session=False)
    )


async def keep(session: AsyncSession, tickets: Sequence[Ticket], lease: timedelta) -> None:
    """Say that these are still being worked on.

    One that has just been postponed beyond the lease stays so; for less, it may wait for a lease.
    """
    until = clock(lease)
    await session.execute(
        update(OutboxJob)
        .where(
            tuple_(OutboxJob.id, OutboxJob.tries).in_(
                [(ticket.id, ticket.tries) for ticket in tickets]
            ),
            # The try may have ended since its holder was asked; null once the job is done.
            OutboxJob.due_at < until,
        )
        .values(due_at=until)
        .execution_options(synchronize_session=False)
    )


async def finish(session: AsyncSession, ticket: Ticket) -> None:
    """Mark a job as done, in the transaction of its effects.

    Raises:
        SupersededError: it has been done, or begun by someone else.
    """
    await _change(session, ticket, due_at=None, done_at=clock())


async def postpone(session: AsyncSession, ticket: Ticket, delay: timedelta) -> None:
    """Have a job tried again later, as this try has failed.

    Raises:
        SupersededError: as for `finish`.
    """
    await _change(
        session,
        ticket,
        failures=OutboxJob.failures + 1,
        due_at=clock(delay),
        refused_since=None,
    )


async def refuse(session: AsyncSession, ticket: Ticket, delay: timedelta) -> None:
    """Undo `begin_try` and offer the job again later: it is one of another release.

    Raises:
        SupersededError: as for `finish`.
    """
    since = func.coalesce(OutboxJob.refused_since, clock())
    await _change(
        session, ticket, tries=OutboxJob.tries - 1, due_at=clock(delay), refused_since=since
    )


async def give_back(session: AsyncSession, ticket: Ticket, delay: timedelta = timedelta()) -> None:
    """Undo `begin_try`: the try has not come to an end and does not count.

    Raises:
        SupersededError: as for `finish`.
    """
    await _change(session, ticket, tries=OutboxJob.tries - 1, due_at=clock(delay))


async def _change(session: AsyncSession, ticket: Ticket, **values: Any) -> None:
    changed = await session.scalar(
        update(OutboxJob)
        .where(_is_current(ticket))
        .values(**values)
        .returning(OutboxJob.id)
        .execution_options(synchronize_session=False)
    )
    if changed is None:
        raise SupersededError


async def remove(session: AsyncSession, ticket: Ticket) -> None:
    """Take a job out that is not done: it is given up.

    Raises:
        SupersededError: as for `finish`.
    """
    removed = await session.scalar(
        delete(OutboxJob)
        .where(_is_current(ticket))
        .returning(OutboxJob.id)
        .execution_options(synchronize_session=False)
    )
    if removed is None:
        raise SupersededError


async def purge(session: AsyncSession, keep_for: timedelta) -> int:
    """Delete a batch of what was done longer ago; returns how many rows."""
    old = (
        select(OutboxJob.id)
        .where(OutboxJob.done_at < clock(-keep_for))
        .limit(_PURGE_BATCH)
        .with_for_update(skip_locked=True)
    )
    gone = await session.scalars(
        delete(OutboxJob)
        .where(OutboxJob.id.in_(old))
        .returning(OutboxJob.id)
        .execution_options(synchronize_session=False)
    )
    return len(gone.all())
