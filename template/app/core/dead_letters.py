"""Dead letters: jobs that were given up, with what it takes to understand and repeat them."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, ColumnElement, String, Text, delete, exists, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from uuid_utils.compat import uuid7

from app.core import outbox
from app.core.database import Base, clock
from app.core.outbox import OutboxJob, Ticket

_PURGE_BATCH = 1000
_MAX_ERROR = 2000
_MAX_TRACEBACK = 20_000


class DeadLetter(Base):
    """A job that was given up."""

    __tablename__ = "dead_letters"

    # Version 7 ids grow with time: the primary key is the order of the list.
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    job_id: Mapped[str] = mapped_column(String(255), index=True)
    name: Mapped[str] = mapped_column(String(100))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    context: Mapped[dict[str, str]] = mapped_column(JSON)
    ordering_key: Mapped[str | None] = mapped_column(String(255))
    tries: Mapped[int]
    error: Mapped[str] = mapped_column(Text)
    traceback: Mapped[str] = mapped_column(Text)
    enqueued_at: Mapped[datetime]
    failed_at: Mapped[datetime]


async def bury(session: AsyncSession, row: OutboxJob, error: str, traceback: str) -> None:
    """Move a job from the outbox to the dead letters.

    Raises:
        SupersededError: it has been done, or begun by someone else.
    """
    await outbox.remove(session, Ticket(row.id, row.tries))
    session.add(
        DeadLetter(
            job_id=row.job_id,
            name=row.name,
            payload=row.payload,
            context=row.context,
            ordering_key=row.ordering_key,
            tries=row.tries,
            error=_storable(error)[:_MAX_ERROR],
            # The end names the error.
            traceback=_storable(traceback)[-_MAX_TRACEBACK:],
            enqueued_at=row.created_at,
            failed_at=clock(),
        )
    )


def _storable(text: str) -> str:
    """Escape what no database takes as text, or what made the job fail would keep it alive."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


async def find(
    session: AsyncSession, *, name: str | None = None, limit: int | None = None
) -> Sequence[DeadLetter]:
    """Return dead letters, oldest first; of all jobs unless `name` is given."""
    statement = select(DeadLetter).order_by(DeadLetter.id).limit(limit)
    if name is not None:
        statement = statement.where(DeadLetter.name == name)
    return (await session.scalars(statement)).all()


async def find_ids(session: AsyncSession, *, name: str | None = None) -> Sequence[UUID]:
    """Return the ids of dead letters, oldest first; there may be too many to load the rest."""
    statement = select(DeadLetter.id).order_by(DeadLetter.id)
    if name is not None:
        statement = statement.where(DeadLetter.name == name)
    return (await session.scalars(statement)).all()


def has_dead_letter(job_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a job with this id was given up, and is neither retried nor discarded yet."""
    return exists().where(DeadLetter.job_id == job_id)


async def get_locked(session: AsyncSession, id_: UUID) -> DeadLetter | None:
    """Return a dead letter, locked until the transaction ends; `None` when it has gone."""
    return await session.get(DeadLetter, id_, with_for_update=True)


async def retry(
    session: AsyncSession, letter: DeadLetter, payload: dict[str, Any] | None = None
) -> bool:
    """Put a job back into the outbox, with all its tries, and drop the dead letter.

    Args:
        session: Where the letter was read, with a transaction that can write.
        letter: What to repeat.
        payload: Replaces the job's own.

    Returns:
        Whether it was put back; `False` when a job with its id has been added since, which then
        stands for it.
    """
    added = await outbox.add(
        session,
        name=letter.name,
        payload=letter.payload if payload is None else payload,
        context=letter.context,
        job_id=letter.job_id,
        ordering_key=letter.ordering_key,
    )
    await session.delete(letter)
    return added


async def discard(session: AsyncSession, letter: DeadLetter) -> None:
    """Drop a dead letter for good."""
    await session.delete(letter)


async def purge(session: AsyncSession, keep_for: timedelta) -> int:
    """Delete a batch of what failed longer ago; returns how many."""
    old = (
        select(DeadLetter.id)
        .where(DeadLetter.failed_at < clock(-keep_for))
        # They become dead letters in about the order of their ids.
        .order_by(DeadLetter.id)
        .limit(_PURGE_BATCH)
        .with_for_update(skip_locked=True)
    )
    gone = await session.scalars(
        delete(DeadLetter)
        .where(DeadLetter.id.in_(old))
        .returning(DeadLetter.id)
        .execution_options(synchronize_session=False)
    )
    return len(gone.all())
